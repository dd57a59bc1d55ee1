#!/usr/bin/env python3
"""Builds the training corpus: documents of six kinds, cleaned, deduplicated, split by document.

Reads ../shared/data (see its README for sources and licences), writes to --out:
  train.jsonl, val.jsonl   one {"kind", "source", "text"} per line
  val.txt                  tales and stories of the validation set as plain text, for perplexity tests

Kinds: tale (children's books and tales), novel (other simple fiction), story (short modern stories),
dialogue (two-sided small talk), instruct (short instructions and their answers). Chats are stored in
ChatML, so that the tokenizer only has to know the special pieces. Paragraphs end in one newline:
byte-level BPE with the GPT-2 split spends a token on each newline.
"""
import argparse
import bz2
import csv
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

# Authors whose every book goes in, or author -> words of titles. Simple, narrow text on purpose: a model
# of a few million parameters learns to hold a sentence together only if the text is alike.
TALES = {
    "The Brothers Grimm": None, "Hans Christian Andersen": None, "Aesop": None, "Edith Nesbit": None,
    "L. Frank Baum": None, "Lewis Carroll": None, "Beatrix Potter": None, "Hugh Lofting": None,
    "Carlo Collodi": None, "Johanna Spyri": None, "J. M. Barrie": ["Peter Pan"],
    "George MacDonald": ["Goblin"], "Oscar Wilde": ["Happy Prince", "Canterville"],
    "Frances Hodgson Burnett": ["Little Princess", "Secret Garden"], "Rudyard Kipling": ["Jungle Book"],
    "Gertrude Chandler Warner": None, "Abbie Farwell Brown": None, "Anonymous": ["Aladdin"],
    "Howard Pyle": ["Robin Hood"], "Gabrielle-Suzanne Barbot de Villeneuve": None,
    "Various": ["Thousand and One", "Hawaiian Folk", "Christmas Stories"], "Lafcadio Hearn": ["Kwaidan"],
    "Henry van Dyke": None, "Louisa May Alcott": ["Little Men", "Little Women", "Jo's Boys", "Old-Fashioned"],
    "Lucy Maud Montgomery": None, "Mark Twain": ["Tom Sawyer", "Prince and the Pauper"],
    "Adalbert Stifter": None, "Washington Irving": None, "E.T.A. Hoffmann": None,
    "Robert Louis Stevenson": ["Treasure Island"],
}
NOVELS = {
    "Arthur Conan Doyle": None, "Jack London": ["Call of the Wild", "White Fang"], "Horatio Alger": None,
    "Robert Louis Stevenson": ["Kidnapped", "Jekyll"], "Jules Verne": ["80 Days", "Journey", "Mysterious"],
    "Johann David Wyss": None, "P.G. Wodehouse": None, "H.G. Wells": ["Time Machine", "War of the Worlds", "Invisible"],
    "Agatha Christie": None, "R.M. Ballantyne": None, "George MacDonald": ["Phantastes"],
    "Jerome K. Jerome": None, "Rudyard Kipling": ["Captains"], "Emma Orczy": None,
    "Thomas Bulfinch": None, "Grace Livingston Hill": None, "Carey Rockwell": None,
}
ASCII = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "´": "'", "`": "'", "—": "--", "–": "-",
                       "…": "...", "\u00a0": " ", "\u2009": " ", "\u200b": "", "\ufeff": "", "æ": "ae", "œ": "oe"})
STORY_PROMPTS = ["Tell me a story called {}.", "Can you tell me the story of {}?", "Please tell me a story about {}.",
                 "Write a short story with the title {}.", "I would like to hear a story: {}."]


def tidy(text):
    """One paragraph: plain quotes, no markup, single spaces."""
    text = text.translate(ASCII)
    text = re.sub(r"!\[.*?\]\(.*?\)|\[\^?\d+\]|\{\d+\}|<[^>]{1,40}>", "", text)
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text)
    text = re.sub(r"[*_\\]+", "", text)
    return re.sub(r"\s+", " ", text).strip()


def mostly_ascii(text):
    return sum(ord(c) < 128 for c in text) > 0.995 * len(text)


def chat(turns):
    """ChatML of alternating user and assistant turns."""
    roles = ("user", "assistant")
    return "".join(f"<|im_start|>{roles[i % 2]}\n{t}<|im_end|>\n" for i, t in enumerate(turns))


def wanted(author, title, table):
    if author not in table:
        return False
    return table[author] is None or any(word in title for word in table[author])


def chapters(markdown):
    """Splits a book at its headings; each chapter is a document."""
    body = markdown.split("-------", 1)[-1]
    for part in re.split(r"^#+ .*$", body, flags=re.M):
        paragraphs = [tidy(p) for p in re.split(r"\n\s*\n", part)]
        paragraphs = [p for p in paragraphs if len(p) > 1 and not re.fullmatch(r"[\W\d]+", p)]
        text = "\n".join(paragraphs)
        if len(text) > 200 and mostly_ascii(text):
            yield text


def books(data):
    with tarfile.open(data / "text/books.tar.bz2") as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or not member.name.endswith(".md") or len(parts) < 2:
                continue
            author, title = parts[-2], parts[-1][:-3]
            kind = "tale" if wanted(author, title, TALES) else "novel" if wanted(author, title, NOVELS) else None
            if kind:
                markdown = tar.extractfile(member).read().decode("utf-8", "replace")
                for text in chapters(markdown):
                    yield kind, f"{author}: {title}", text


def stories(data):
    """Short stories twice: as plain text and as the answer to a request. CC BY only, credits stripped."""
    with tarfile.open(data / "text/stories.tar.bz2") as tar:
        for member in tar:
            if not member.name.endswith(".md"):
                continue
            raw = tar.extractfile(member).read().decode("utf-8", "replace")
            if not re.search(r"License: \[CC-BY\b(?!-)", raw) or "Language: en" not in raw:
                continue
            title = tidy(raw.split("\n", 1)[0].lstrip("# "))
            body = re.split(r"^\* License", raw.split("\n", 1)[1], flags=re.M)[0]
            pages = [tidy(p) for p in re.split(r"^##.*$|\n\s*\n", body, flags=re.M)]
            text = "\n".join(p for p in pages if p)
            if len(text) < 150 or not mostly_ascii(text):
                continue
            prompt = STORY_PROMPTS[int(digest(title), 16) % len(STORY_PROMPTS)].format(title)
            yield "story", member.name, f"{title}\n{text}"
            if len(text) < 6000:
                yield "storychat", member.name, chat([prompt, text])


def dialogues(data):
    with tarfile.open(data / "chat/self_dialogue_corpus.tar.bz2") as tar:
        for member in tar:
            if not member.name.endswith(".csv"):
                continue
            text = tar.extractfile(member).read().decode("utf-8", "replace")
            for row in csv.DictReader(io.StringIO(text)):
                turns = dialogue_turns(row)
                if len(turns) >= 4:
                    yield "dialogue", member.name, chat(turns)


def dialogue_turns(row):
    turns = []
    for i in range(1, 100):
        value = row.get(f"Answer.sentence{i}")
        if value is None:
            break
        value = tidy(value)
        if not value or value in ("x", "{}", "n/a"):
            break
        turns.append(value[0].upper() + value[1:])
    text = " ".join(turns)
    letters = sum(c.isalpha() for c in text)
    shouting = letters and sum(c.isupper() for c in text) > 0.3 * letters
    if shouting or not mostly_ascii(text) or "http" in text or len(set(turns)) < len(turns):
        return []
    return turns[:len(turns) // 2 * 2]  # ends with the assistant


def instructions(data):
    """Short questions and answers only: long factual answers are beyond a model of this size."""
    for line in bz2.open(data / "chat/dolly_6400.jsonl.bz2", "rt"):
        record = json.loads(line)
        answer = record.get("response") or record.get("text") or ""
        yield from instruction("dolly", record["instruction"], "", answer)
    for record in json.load(open(data / "chat/instruction-data-1100.json")):
        yield from instruction("instruction-data-1100", record["instruction"], record["input"], record["output"])


def instruction(source, question, extra, answer):
    question = tidy(question) + ("\n" + tidy(extra) if extra.strip() else "")
    answer = "\n".join(tidy(p) for p in answer.split("\n") if p.strip())
    if 5 < len(question) < 300 and 1 < len(answer) < 500 and mostly_ascii(question + answer):
        yield "instruct", source, chat([question, answer])


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


# Share held out per kind: small sources need more, so that each contributes enough tokens.
HELD_OUT = {"tale": 0.02, "novel": 0.01, "story": 0.06, "storychat": 0.06, "dialogue": 0.02, "instruct": 0.04}


def split_of(kind, source, text):
    """By document. A short story's two forms share their source, hence their side of the split."""
    key = source if kind in ("story", "storychat") else text
    return "val" if int(digest("split" + key), 16) % 10000 < HELD_OUT[kind] * 10000 else "train"


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=root.parent / "shared/data")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seen, sizes = set(), {}
    files = {s: open(args.out / f"{s}.jsonl", "w") for s in ("train", "val")}
    val_text = []
    for reader in (books, stories, dialogues, instructions):
        for kind, source, text in reader(args.data):
            key = digest(re.sub(r"\W+", "", text.lower())[:600])  # near-duplicates share their beginning
            if key in seen:
                continue
            seen.add(key)
            split = split_of(kind, source, text)
            files[split].write(json.dumps({"kind": kind, "source": source, "text": text}) + "\n")
            count, chars = sizes.get((split, kind), (0, 0))
            sizes[split, kind] = (count + 1, chars + len(text))
            if split == "val" and kind in ("tale", "story"):
                val_text.append(text)
    (args.out / "val.txt").write_text("\n\n".join(val_text)[:200_000])
    for (split, kind), (count, chars) in sorted(sizes.items()):
        print(f"{split:5} {kind:9} {count:6} documents {chars / 1e6:7.2f} MB")


if __name__ == "__main__":
    main()
