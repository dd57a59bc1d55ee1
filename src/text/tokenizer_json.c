/* Reads a tokenizer.json. The file is hostile: kinds and settings that are not supported are refused by name,
 * ids and sizes are checked before they are used, and nothing recurses deeper than MAX_DEPTH.
 *
 * The decoder and the post-processor are not read: decoding is the inverse of what encoding does, and nothing
 * is added to a text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/json.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

enum {
    /* The largest known tokenizer has 262,144 pieces, 600,000 merges of two texts each and 6,400 added tokens:
     * 2.5 million values and keys. */
    MAX_VALUES = 3 << 20,
    MAX_NORMALIZED_BYTES = 64 << 20, /* read and written for all added tokens; 30,000 of 30 bytes take 4 MB */
    MAX_RULE_BYTES = 1024, /* of a text in a normalizer */
    MAX_DEPTH = 4          /* of a Sequence in a Sequence */
};

static const char GPT2_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char DIGITS_PATTERN[] = "\\p{N}";
static const char PUNCTUATION_PATTERN[] = "[\\p{P}$+<=>^`|~]";

/* ---- access to the JSON ------------------------------------------------------------------------- */

static sl_status wrong(sl_error *err, const char *what, const char *expected) {
    return sl_fail(err, SL_E_FORMAT, "tokenizer.json: %s; expected %s", what, expected);
}

static sl_status unsupported(sl_error *err, const char *what, const char *kind, const char *expected) {
    sl_name_buf name;
    return sl_fail(err, SL_E_UNSUPPORTED, "tokenizer.json: %s \"%s\" is not supported; expected %s", what,
                   sl_name(kind, &name), expected);
}

/* A text member, "" if it is not there or no text. */
static const char *text_of(const sl_json *object, const char *key) {
    const char *text = sl_json_text(sl_json_get(object, key));
    return text ? text : "";
}

/* A member that is true, false or absent. */
static sl_status flag_of(const sl_json *object, const char *key, bool *out, sl_error *err) {
    const sl_json *value = sl_json_get(object, key);
    if (value && value->kind > SL_JSON_TRUE) /* null is absent */
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: %s is neither true nor false", key);
    if (value && value->kind != SL_JSON_NULL) *out = value->kind == SL_JSON_TRUE;
    return SL_OK;
}

/* A text of 1..MAX_RULE_BYTES (0 if may_be_empty) copied to out. */
static sl_status rule_text(const sl_json *value, const char *what, bool may_be_empty, sl_buf *out,
                           sl_error *err) {
    size_t n = sl_json_text_bytes(value);
    if (!sl_json_is(value, SL_JSON_TEXT) || n > MAX_RULE_BYTES || (!n && !may_be_empty))
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: %s is not a text of %d to %d bytes", what,
                       !may_be_empty, MAX_RULE_BYTES);
    if (sl_buf_append(out, sl_json_text(value), n)) return SL_OK;
    return sl_fail(err, SL_E_MEMORY, "out of memory for the tokenizer");
}

/* ---- pieces and added tokens -------------------------------------------------------------------- */

static sl_status check_id(const sl_json *value, const char *piece, size_t n_vocab, int32_t *id, sl_error *err) {
    sl_name_buf name;
    size_t limit = sl_min(n_vocab, SL_MAX_PIECE);
    if (!sl_json_is(value, SL_JSON_INT))
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: piece \"%s\" has an id that is not an integer",
                       sl_name(piece, &name));
    const int64_t v = value->v.i;
    if (v < 0 || (uint64_t)v >= limit)
        return sl_fail(err, SL_E_FORMAT,
                       "tokenizer.json: piece \"%s\" has id %lld; expected 0 to %zu, below vocab_size",
                       sl_name(piece, &name), (long long)v, limit - 1);
    *id = (int32_t)v;
    return SL_OK;
}

/* Checks all ids and makes room for their pieces. */
static sl_status init_vocab(sl_tokenizer *t, const sl_json *vocab, const sl_json *added, size_t n_vocab,
                            sl_error *err) {
    size_t n = 0;
    int32_t id;
    const sl_json *key = sl_json_first(vocab), *value = sl_json_first(added);
    for (size_t i = 0; i < sl_json_size(vocab); i++, key = sl_json_next_key(key)) {
        SL_TRY(check_id(key + 1, key->v.text, n_vocab, &id, err));
        n = sl_max(n, (size_t)id + 1);
    }
    for (size_t i = 0; i < sl_json_size(added); i++, value = sl_json_next(value)) {
        SL_TRY(check_id(sl_json_get(value, "id"), text_of(value, "content"), n_vocab, &id, err));
        n = sl_max(n, (size_t)id + 1);
    }
    if (!n) return wrong(err, "the vocabulary is empty", "at least one piece");
    return sl_vocab_init(&t->vocab, n, sl_json_size(vocab) + sl_json_size(added), err);
}

/* The text of a token that is searched in normalised text. */
static sl_status normal_text(const sl_tokenizer *t, sl_buf *text, size_t *budget, sl_error *err) {
    sl_name_buf name;
    sl_buf normal = { 0 }, spare = { 0 };
    sl_status status = sl_normalize(&t->normalizers, text->data, text->n, budget, &normal, &spare, err);
    if (status == SL_OK && (!normal.n || normal.n > SL_MAX_ADDED_BYTES))
        status = sl_fail(err, SL_E_FORMAT,
                         "tokenizer.json: added token \"%s\" has %zu bytes when normalised; expected 1..%d",
                         sl_name_escape(text->data, text->n, &name), normal.n, SL_MAX_ADDED_BYTES);
    sl_buf_release(&spare);
    sl_buf_release(text);
    *text = normal;
    return status;
}

/* item has its id; its text is in *text. */
static sl_status add_added(sl_tokenizer *t, const sl_json *object, sl_added *item, sl_buf *text, size_t *budget,
                           sl_error *err) {
    SL_TRY(flag_of(object, "special", &item->special, err));
    bool normalized = !item->special;
    SL_TRY(flag_of(object, "normalized", &normalized, err));
    SL_TRY(flag_of(object, "lstrip", &item->lstrip, err));
    SL_TRY(flag_of(object, "rstrip", &item->rstrip, err));
    SL_TRY(flag_of(object, "single_word", &item->single_word, err));
    sl_piece *piece = &t->vocab.pieces[item->id];
    bool again = sl_vocab_find(&t->vocab, text->data, text->n) == item->id && !piece->added;
    if (!again) SL_TRY(sl_vocab_add(&t->vocab, item->id, text->data, text->n, err));
    piece->added = true;
    piece->special = item->special;
    if (normalized) SL_TRY(normal_text(t, text, budget, err));
    item->text = text->data;
    item->n = text->n;
    return sl_added_add(normalized ? &t->normalized : &t->raw, item, err);
}

static sl_status read_added(sl_tokenizer *t, const sl_json *object, size_t *budget, sl_error *err) {
    sl_added item = { .id = (int32_t)sl_json_get(object, "id")->v.i };
    sl_buf text = { 0 };
    sl_status status =
        rule_text(sl_json_get(object, "content"), "the content of an added token", false, &text, err);
    if (status == SL_OK) status = add_added(t, object, &item, &text, budget, err);
    sl_buf_release(&text);
    return status;
}

static sl_status read_pieces(sl_tokenizer *t, const sl_json *vocab, const sl_json *added, size_t n_vocab,
                             sl_error *err) {
    if (!sl_json_is(vocab, SL_JSON_OBJECT)) return wrong(err, "model has no vocab", "an object of pieces and their ids");
    if (added && !sl_json_is(added, SL_JSON_LIST) && !sl_json_is(added, SL_JSON_NULL))
        return wrong(err, "added_tokens is no list", "a list");
    SL_TRY(init_vocab(t, vocab, added, n_vocab, err));
    size_t budget = MAX_NORMALIZED_BYTES;
    const sl_json *key = sl_json_first(vocab), *value = sl_json_first(added);
    for (size_t i = 0; i < sl_json_size(vocab); i++, key = sl_json_next_key(key)) {
        int32_t id = (int32_t)key[1].v.i;
        SL_TRY(sl_vocab_add(&t->vocab, id, key->v.text, key->n, err));
        t->vocab.pieces[id].in_model = true;
    }
    for (size_t i = 0; i < sl_json_size(added); i++, value = sl_json_next(value))
        SL_TRY(read_added(t, value, &budget, err));
    SL_TRY(sl_added_sort(&t->raw, err));
    return sl_added_sort(&t->normalized, err);
}

/* ---- normalizers -------------------------------------------------------------------------------- */

static sl_status read_replace(const sl_json *object, sl_normalizer *rule, sl_error *err) {
    const sl_json *pattern = sl_json_get(object, "pattern");
    rule->kind = SL_NORMALIZE_REPLACE;
    if (sl_json_get(pattern, "Regex"))
        return unsupported(err, "a Replace pattern of kind", "Regex", "String");
    SL_TRY(rule_text(sl_json_get(pattern, "String"), "the pattern of Replace", false, &rule->from, err));
    return rule_text(sl_json_get(object, "content"), "the content of Replace", true, &rule->to, err);
}

/* Whether name is a Unicode normal form, and which. */
static bool is_form(const char *name, sl_normalizer *rule) {
    static const struct {
        const char *name;
        bool compat, compose;
    } forms[] = {
        { "NFC", false, true }, { "NFD", false, false }, { "NFKC", true, true }, { "NFKD", true, false }
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcmp(name, forms[i].name) == 0) {
            *rule = (sl_normalizer){ .compat = forms[i].compat, .compose = forms[i].compose };
            return true;
        }
    return false;
}

static sl_status read_normalizer(sl_tokenizer *t, const sl_json *object, int depth, sl_error *err) {
    if (!object || sl_json_is(object, SL_JSON_NULL)) return SL_OK;
    const char *type = text_of(object, "type");
    if (strcmp(type, "Sequence") == 0) {
        const sl_json *list = sl_json_get(object, "normalizers"), *item = sl_json_first(list);
        if (depth >= MAX_DEPTH || !sl_json_is(list, SL_JSON_LIST))
            return wrong(err, "a Sequence of normalizers", "a list, not nested");
        for (size_t i = 0; i < list->n; i++, item = sl_json_next(item))
            SL_TRY(read_normalizer(t, item, depth + 1, err));
        return SL_OK;
    }
    if (t->normalizers.n == SL_MAX_NORMALIZER) return wrong(err, "too many normalizers", "at most 16");
    sl_normalizer *rule = &t->normalizers.v[t->normalizers.n++];
    if (is_form(type, rule)) return SL_OK;
    if (strcmp(type, "Replace") == 0) return read_replace(object, rule, err);
    if (strcmp(type, "Prepend") != 0)
        return unsupported(err, "normalizer", type, "NFC, NFD, NFKC, NFKD, Prepend, Replace or Sequence");
    rule->kind = SL_NORMALIZE_PREPEND;
    return rule_text(sl_json_get(object, "prepend"), "the text of Prepend", true, &rule->to, err);
}

/* ---- pre-tokenizers ----------------------------------------------------------------------------- */

static sl_status add_stage(sl_tokenizer *t, sl_stage_kind kind, sl_stage **stage, sl_error *err) {
    if (t->stages.n == SL_MAX_STAGE) return wrong(err, "too many pre-tokenizers", "at most 32");
    *stage = &t->stages.v[t->stages.n++];
    (*stage)->kind = kind;
    return SL_OK;
}

static sl_status add_split(sl_tokenizer *t, const char *pattern, size_t n, bool literal, sl_split_how how,
                           sl_error *err) {
    sl_stage *stage = NULL;
    SL_TRY(add_stage(t, SL_STAGE_SPLIT, &stage, err));
    stage->how = how;
    return sl_pattern_create(pattern, n, literal, &stage->pattern, err);
}

/* The same for a pattern of ours. */
static sl_status add_pattern(sl_tokenizer *t, const char *pattern, sl_split_how how, sl_error *err) {
    return add_split(t, pattern, strlen(pattern), false, how, err);
}

static sl_status read_behavior(const sl_json *object, sl_split_how *how, sl_error *err) {
    static const char *const names[] = { "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                         "Contiguous" };
    const char *name = text_of(object, "behavior");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        *how = (sl_split_how)i;
        if (strcmp(name, names[i]) == 0) return SL_OK;
    }
    return unsupported(err, "behavior", name,
                       "Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
}

static sl_status read_split(sl_tokenizer *t, const sl_json *object, sl_error *err) {
    const sl_json *pattern = sl_json_get(object, "pattern");
    const sl_json *regex = sl_json_get(pattern, "Regex"), *literal = sl_json_get(pattern, "String");
    const sl_json *text = regex ? regex : literal;
    sl_split_how how;
    if (!sl_json_is(text, SL_JSON_TEXT)) return wrong(err, "the pattern of Split is no text", "a Regex or a String");
    SL_TRY(read_behavior(object, &how, err));
    SL_TRY(add_split(t, sl_json_text(text), sl_json_text_bytes(text), !regex, how, err));
    return flag_of(object, "invert", &t->stages.v[t->stages.n - 1].invert, err);
}

static sl_status read_byte_level(sl_tokenizer *t, const sl_json *object, sl_error *err) {
    bool prefix = true, use_regex = true;
    sl_stage *stage = NULL;
    SL_TRY(flag_of(object, "add_prefix_space", &prefix, err));
    SL_TRY(flag_of(object, "use_regex", &use_regex, err));
    if (t->byte_level) return wrong(err, "ByteLevel stands twice in the pre-tokenizer", "it once");
    t->byte_level = true;
    if (prefix) {
        SL_TRY(add_stage(t, SL_STAGE_PREFIX, &stage, err));
        stage->always = true;
        if (!sl_buf_append(&stage->prefix, " ", 1))
            return sl_fail(err, SL_E_MEMORY, "out of memory for the tokenizer");
    }
    if (use_regex) SL_TRY(add_pattern(t, GPT2_PATTERN, SL_SPLIT_ISOLATED, err));
    return add_stage(t, SL_STAGE_BYTES, &stage, err);
}

static size_t count_characters(const sl_buf *text) {
    size_t n = 0;
    for (size_t i = 0; i < text->n; i++) n += (text->data[i] & 0xC0) != 0x80;
    return n;
}

static sl_status read_metaspace(sl_tokenizer *t, const sl_json *object, sl_error *err) {
    bool prefix = true, cut = true;
    sl_stage *stage = NULL;
    SL_TRY(flag_of(object, "add_prefix_space", &prefix, err)); /* before there was prepend_scheme */
    SL_TRY(flag_of(object, "split", &cut, err));
    const char *scheme = sl_json_get(object, "prepend_scheme") ? text_of(object, "prepend_scheme")
                         : prefix                                  ? "always"
                                                                   : "never";
    if (strcmp(scheme, "always") && strcmp(scheme, "first") && strcmp(scheme, "never"))
        return unsupported(err, "prepend_scheme", scheme, "always, first or never");
    SL_TRY(add_stage(t, SL_STAGE_PREFIX, &stage, err));
    stage->always = strcmp(scheme, "always") == 0;
    stage->first = strcmp(scheme, "first") == 0;
    SL_TRY(rule_text(sl_json_get(object, "replacement"), "the replacement of Metaspace", false,
                     &stage->prefix, err));
    if (count_characters(&stage->prefix) != 1)
        return wrong(err, "the replacement of Metaspace is a text", "one character");
    if (!cut) return SL_OK;
    return add_split(t, (const char *)stage->prefix.data, stage->prefix.n, true, SL_SPLIT_NEXT, err);
}

static sl_status read_pre_tokenizer(sl_tokenizer *t, const sl_json *object, int depth, sl_error *err) {
    if (!object || sl_json_is(object, SL_JSON_NULL)) return SL_OK;
    const char *type = text_of(object, "type");
    if (strcmp(type, "Sequence") == 0) {
        const sl_json *list = sl_json_get(object, "pretokenizers"), *item = sl_json_first(list);
        if (depth >= MAX_DEPTH || !sl_json_is(list, SL_JSON_LIST))
            return wrong(err, "a Sequence of pre-tokenizers", "a list, not nested");
        for (size_t i = 0; i < list->n; i++, item = sl_json_next(item))
            SL_TRY(read_pre_tokenizer(t, item, depth + 1, err));
        return SL_OK;
    }
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(t, object, err);
    if (strcmp(type, "Split") == 0) return read_split(t, object, err);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(t, object, err);
    if (strcmp(type, "Digits") == 0) {
        bool single = false;
        SL_TRY(flag_of(object, "individual_digits", &single, err));
        return add_pattern(t, DIGITS_PATTERN, single ? SL_SPLIT_ISOLATED : SL_SPLIT_CONTIGUOUS, err);
    }
    if (strcmp(type, "Punctuation") == 0) {
        sl_split_how how = SL_SPLIT_ISOLATED;
        if (sl_json_get(object, "behavior")) SL_TRY(read_behavior(object, &how, err));
        return add_pattern(t, PUNCTUATION_PATTERN, how, err);
    }
    return unsupported(err, "pre-tokenizer", type,
                       "ByteLevel, Split, Digits, Punctuation, Metaspace or Sequence");
}

/* ---- the model ---------------------------------------------------------------------------------- */

static sl_status check_model(const sl_json *model, sl_error *err) {
    static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    if (!sl_json_is(model, SL_JSON_OBJECT)) return wrong(err, "there is no model", "an object");
    const sl_json *dropout = sl_json_get(model, "dropout");
    bool old_bpe = !sl_json_get(model, "type") && sl_json_get(model, "merges"); /* files before 2020 */
    if (!old_bpe && strcmp(text_of(model, "type"), "BPE") != 0)
        return unsupported(err, "model type", text_of(model, "type"), "BPE");
    bool zero = (sl_json_is(dropout, SL_JSON_INT) && dropout->v.i == 0) ||
                (sl_json_is(dropout, SL_JSON_REAL) && dropout->v.real == 0);
    if (dropout && !zero && dropout->kind != SL_JSON_NULL)
        return wrong(err, "the model has a dropout", "null");
    for (size_t i = 0; i < 2; i++)
        if (*text_of(model, affixes[i]))
            return unsupported(err, affixes[i], text_of(model, affixes[i]), "null");
    return SL_OK;
}

/* One merge, "left right" or ["left", "right"]. */
static sl_status read_merge(sl_tokenizer *t, uint32_t rank, const sl_json *value, sl_error *err) {
    sl_name_buf name;
    if (value->kind == SL_JSON_LIST && value->n == 2 && value->span == 3) { /* two plain values */
        const sl_json *left = sl_json_first(value), *right = sl_json_next(left);
        if (left->kind == SL_JSON_TEXT && right->kind == SL_JSON_TEXT)
            return sl_bpe_add(&t->bpe, rank, left->v.text, left->n, right->v.text, right->n, err);
    }
    if (!sl_json_is(value, SL_JSON_TEXT))
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: merge %u is neither \"left right\" nor two texts",
                       rank);
    const char *text = sl_json_text(value), *space = strchr(text, ' ');
    size_t n = sl_json_text_bytes(value), n_left = space ? (size_t)(space - text) : n;
    if (!space || memchr(space + 1, ' ', n - n_left - 1))
        return sl_fail(err, SL_E_FORMAT,
                       "tokenizer.json: merge %u is \"%s\"; expected two pieces with one space between", rank,
                       sl_name_escape(text, n, &name));
    return sl_bpe_add(&t->bpe, rank, text, n_left, space + 1, n - n_left - 1, err);
}

static sl_status read_merges(sl_tokenizer *t, const sl_json *merges, sl_error *err) {
    size_t n = sl_json_size(merges), rank = 0;
    const sl_json *value = sl_json_first(merges);
    if (!sl_json_is(merges, SL_JSON_LIST)) return wrong(err, "model has no merges", "a list");
    if (n > SL_MAX_MERGE)
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: %zu merges; expected at most %d", n, SL_MAX_MERGE);
    SL_TRY(sl_bpe_init(&t->bpe, &t->vocab, n, err));
    for (size_t i = 0; i < n; i++, value = sl_json_next(value)) {
        const char *text = sl_json_text(value);
        if (text && strncmp(text, "#version", 8) == 0) continue;
        SL_TRY(read_merge(t, (uint32_t)rank++, value, err));
    }
    return SL_OK;
}

static sl_status read_unk(sl_tokenizer *t, const sl_json *model, sl_error *err) {
    sl_name_buf name;
    const sl_json *unk = sl_json_get(model, "unk_token");
    t->bpe.unk = -1;
    if (!unk || sl_json_is(unk, SL_JSON_NULL)) return SL_OK;
    t->bpe.unk = sl_vocab_find(&t->vocab, text_of(model, "unk_token"), sl_json_text_bytes(unk));
    if (t->bpe.unk >= 0) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "tokenizer.json: unk_token \"%s\" is not in the vocabulary",
                   sl_name(text_of(model, "unk_token"), &name));
}

/* How each byte is written: in the byte alphabet, or as "<0xXX>". Bytes that UTF-8 never has may be missing
 * (GPT-NeoX leaves them out). */
static sl_status find_bytes(sl_tokenizer *t, sl_error *err) {
    int32_t alphabet[256];
    sl_byte_alphabet(alphabet);
    bool fallback = t->bpe.byte_fallback && !t->byte_level;
    if (!t->byte_level && !fallback && t->bpe.unk < 0)
        return wrong(err, "neither ByteLevel, nor byte_fallback, nor an unk_token", "one of them");
    for (int b = 0; b < 256; b++) {
        char text[8];
        size_t n = fallback ? 6 : sl_utf8_put(alphabet[b], (uint8_t *)text);
        if (fallback) snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        text[n] = 0;
        t->bpe.byte_id[b] = t->byte_level ? sl_vocab_find_text(&t->vocab, text, n)
                            : fallback    ? sl_vocab_find(&t->vocab, text, n)
                                          : -1;
        bool never = b == 0xC0 || b == 0xC1 || b >= 0xF5;
        if (t->bpe.byte_id[b] < 0 && t->bpe.unk < 0 && !never)
            return sl_fail(err, SL_E_FORMAT,
                           "tokenizer.json: byte 0x%02X has no piece (\"%s\") and there is no unk_token",
                           (unsigned)b, text);
    }
    return SL_OK;
}

static sl_status read_model(sl_tokenizer *t, const sl_json *model, sl_error *err) {
    SL_TRY(read_merges(t, sl_json_get(model, "merges"), err));
    SL_TRY(flag_of(model, "byte_fallback", &t->bpe.byte_fallback, err));
    SL_TRY(flag_of(model, "fuse_unk", &t->bpe.fuse_unk, err));
    SL_TRY(flag_of(model, "ignore_merges", &t->bpe.ignore_merges, err));
    SL_TRY(read_unk(t, model, err));
    return find_bytes(t, err);
}

/* ---- bytes of the pieces ------------------------------------------------------------------------ */

/* What stands for a space, from the rules that put it there. */
static sl_status find_space(sl_tokenizer *t, sl_error *err) {
    const sl_buf *space = NULL;
    for (size_t i = 0; i < t->normalizers.n; i++) {
        const sl_normalizer *rule = &t->normalizers.v[i];
        bool from_space = rule->from.n == 1 && rule->from.data[0] == ' ';
        if (rule->kind == SL_NORMALIZE_REPLACE && from_space) space = &rule->to;
        if (rule->kind == SL_NORMALIZE_PREPEND && rule->to.n) t->adds_space = true;
    }
    for (size_t i = 0; i < t->stages.n; i++)
        if (t->stages.v[i].kind == SL_STAGE_PREFIX && !t->byte_level) {
            space = &t->stages.v[i].prefix;
            t->adds_space = t->stages.v[i].always || t->stages.v[i].first;
        }
    if (!space || sl_buf_append(&t->space, space->data, space->n)) return SL_OK;
    return sl_fail(err, SL_E_MEMORY, "out of memory for the tokenizer");
}

/* A piece in the byte alphabet as bytes; false: it has other characters. */
static bool from_alphabet(const int16_t *byte_of, const uint8_t *key, size_t n_key, uint8_t *out,
                          size_t *n_out) {
    *n_out = 0;
    for (size_t i = 0, n_char; i < n_key; i += n_char) {
        int32_t code = sl_utf8_code(key + i, &n_char);
        if (code >= 512 || byte_of[code] < 0) return false;
        out[(*n_out)++] = (uint8_t)byte_of[code];
    }
    return true;
}

static size_t from_spaces(const sl_buf *space, const uint8_t *key, size_t n_key, uint8_t *out) {
    size_t n = 0;
    for (size_t i = 0; i < n_key;) {
        bool here = space->n && i + space->n <= n_key && memcmp(key + i, space->data, space->n) == 0;
        out[n++] = here ? ' ' : key[i];
        i += here ? space->n : 1;
    }
    return n;
}

/* The byte of a piece written "<0xA5>", -1 for any other: two upper-case digits and nothing else. */
static int fallback_byte(const uint8_t *key, size_t n_key) {
    static const char digits[] = "0123456789ABCDEF";
    if (n_key != 6 || memcmp(key, "<0x", 3) || key[5] != '>' || !key[3] || !key[4]) return -1;
    const char *high = strchr(digits, key[3]), *low = strchr(digits, key[4]);
    return high && low ? (int)(high - digits) * 16 + (int)(low - digits) : -1;
}

/* out has room for SL_MAX_PIECE_BYTES. */
static size_t piece_bytes(const sl_tokenizer *t, const int16_t *byte_of, int32_t id, uint8_t *out) {
    size_t n_key, n;
    const uint8_t *key = sl_vocab_key(&t->vocab, id, &n_key);
    bool added = t->vocab.pieces[id].added;
    if (!added && t->byte_level && from_alphabet(byte_of, key, n_key, out, &n)) return n;
    int byte = !added && t->bpe.byte_fallback ? fallback_byte(key, n_key) : -1;
    if (byte >= 0 && t->bpe.byte_id[byte] == id) {
        *out = (uint8_t)byte;
        return 1;
    }
    if (!added && !t->byte_level) return from_spaces(&t->space, key, n_key, out);
    memcpy(out, key, n_key);
    return n_key;
}

static sl_status set_bytes(sl_tokenizer *t, sl_error *err) {
    int32_t alphabet[256];
    int16_t byte_of[512];
    uint8_t out[SL_MAX_PIECE_BYTES];
    sl_byte_alphabet(alphabet);
    memset(byte_of, 0xFF, sizeof byte_of);
    for (int b = 0; b < 256; b++) byte_of[alphabet[b]] = (int16_t)b;
    for (size_t id = 0; id < t->vocab.n; id++)
        if (t->vocab.pieces[id].known)
            SL_TRY(
                sl_vocab_set_out(&t->vocab, (int32_t)id, out, piece_bytes(t, byte_of, (int32_t)id, out), err));
    return SL_OK;
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static sl_status read_root(sl_tokenizer *t, const sl_json *root, size_t n_vocab, sl_error *err) {
    const sl_json *model = sl_json_get(root, "model");
    SL_TRY(check_model(model, err));
    SL_TRY(read_normalizer(t, sl_json_get(root, "normalizer"), 0, err));
    SL_TRY(read_pre_tokenizer(t, sl_json_get(root, "pre_tokenizer"), 0, err));
    SL_TRY(
        read_pieces(t, sl_json_get(model, "vocab"), sl_json_get(root, "added_tokens"), n_vocab, err));
    SL_TRY(read_model(t, model, err));
    SL_TRY(find_space(t, err));
    return set_bytes(t, err);
}

static sl_status in_file(sl_status status, sl_error *err) {
    if (!err) return status;
    sl_error inner = *err;
    return sl_fail(err, status, "tokenizer.json: %s", inner.text);
}

sl_status sl_tokenizer_create(const char *json, size_t n_bytes, size_t n_vocab, sl_tokenizer **out,
                              sl_error *err) {
    sl_json_doc doc;
    sl_tokenizer *t = NULL;
    if (n_bytes > SL_TOKENIZER_MAX_BYTES)
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: %zu bytes; expected at most %d", n_bytes,
                       SL_TOKENIZER_MAX_BYTES);
    sl_status status = sl_json_read(&doc, json, n_bytes, MAX_VALUES, err);
    if (status != SL_OK) return in_file(status, err);
    status = sl_alloc((void **)&t, 1, sizeof *t, "the tokenizer", err);
    if (status == SL_OK && doc.values->kind != SL_JSON_OBJECT) status = wrong(err, "the text is no object", "an object");
    if (status == SL_OK) status = read_root(t, doc.values, n_vocab, err);
    sl_json_release(&doc);
    if (status == SL_OK) *out = t;
    else sl_tokenizer_destroy(t);
    return status;
}
