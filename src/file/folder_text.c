#include "file/folder_text.h"

#include <stdlib.h>
#include <string.h>

#include "text/tokenizer.h"

enum {
    TEMPLATE_MAX_BYTES = 1 << 20,
    TOKENIZER_CONFIG_MAX_BYTES = 1 << 24,
    TOKENIZER_CONFIG_MAX_VALUES = 1 << 19 /* one with 6,400 added tokens has 96,000 */
};

/* ---- config ------------------------------------------------------------------------------------- */

/* The metadata of folder/name; *there false and no error if it is absent. */
static sl_status parse_file(const char *folder, const char *name, sl_meta *meta, bool *there, sl_error *err) {
    char *json;
    size_t n;
    SL_TRY(sl_file_text(folder, name, SL_CONFIG_MAX_BYTES, &json, &n, err));
    *there = json;
    if (!json) return SL_OK;
    sl_status status = sl_config_parse(json, n, meta, err);
    free(json);
    return status == SL_OK ? SL_OK : sl_file_context(name, status, err);
}

static sl_status take_key(const sl_meta *from, const char *key, sl_meta *meta, sl_error *err) {
    const sl_meta_entry *entry = sl_meta_find(from, key);
    if (!entry || entry->type != SL_META_INT || sl_meta_find(meta, key)) return SL_OK;
    return sl_meta_add(meta, key, SL_META_INT, entry->is_list, entry->v.i, entry->n, err);
}

sl_status sl_folder_config(const char *folder, sl_meta *meta, sl_error *err) {
    bool there;
    sl_meta more = { 0 };
    sl_name_buf buf;
    SL_TRY(parse_file(folder, "config.json", meta, &there, err));
    if (!there) return sl_fail(err, SL_E_IO, "%s holds no config.json", sl_os_path_name(folder, &buf));
    if (sl_meta_find(meta, "bos_token_id") && sl_meta_find(meta, "eos_token_id")) return SL_OK;
    SL_TRY(parse_file(folder, "generation_config.json", &more, &there, err));
    sl_status status = take_key(&more, "bos_token_id", meta, err);
    if (status == SL_OK) status = take_key(&more, "eos_token_id", meta, err);
    sl_meta_release(&more);
    return status;
}

/* ---- tokenizer ---------------------------------------------------------------------------------- */

/* Drops white space between the tokens of a JSON text, in place. */
static void minify(char *json) {
    bool in_text = false;
    char *w = json;
    for (const char *p = json; *p; p++) {
        if (!in_text && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) continue; /* strchr takes 0.6 s for 48 MB */
        if (in_text && *p == '\\' && p[1]) *w++ = *p++;
        else if (*p == '"') in_text = !in_text;
        *w++ = *p;
    }
    *w = 0;
}

static sl_status add_tokenizer(char *json, size_t n, size_t n_vocab, sl_meta *meta, sl_error *err) {
    sl_tokenizer *tokenizer = NULL;
    if (memchr(json, 0, n) || !sl_file_utf8(json, n))
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: the text is not UTF-8 or holds a zero byte");
    SL_TRY(sl_tokenizer_create(json, n, n_vocab, &tokenizer, err));
    sl_tokenizer_destroy(tokenizer);
    minify(json);
    return sl_meta_set_string(meta, "tokenizer", json, err);
}

/* Files of tokenizers that are not supported yet, most telling first. */
static sl_status refuse_others(const char *folder, sl_error *err) {
    static const char *const names[] = {
        "tokenizer.model", "tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3", "spiece.model",
        "sentencepiece.bpe.model", "tekken.json", "tokenizer.tiktoken", "qwen.tiktoken", "vocab.json",
            "merges.txt",
        "vocab.txt", "rwkv_vocab_v20230424.txt",
    };
    sl_name_buf buf;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *path = sl_file_path(folder, names[i]);
        bool there = path && sl_os_kind_of(path) != SL_OS_NOTHING;
        free(path);
        if (there)
            return sl_fail(err, SL_E_UNSUPPORTED, "%s is a kind of tokenizer that is not supported, expected "
                           "tokenizer.json (--no-tokenizer converts without)", sl_name(names[i], &buf));
    }
    return SL_OK;
}

/* The template in tokenizer_config.json: one text, or a list of named ones. Borrowed from root; NULL: none. */
static const char *find_template(const sl_json *root) {
    const sl_json *value = sl_json_get(root, "chat_template");
    const char *first = sl_json_text(value);
    if (!sl_json_is(value, SL_JSON_LIST)) return first;
    const sl_json *one = sl_json_first(value);
    for (size_t i = 0; i < value->n; i++, one = sl_json_next(one)) {
        const char *name = sl_json_text(sl_json_get(one, "name"));
        const char *text = sl_json_text(sl_json_get(one, "template"));
        if (text && (!first || (name && !strcmp(name, "default")))) first = text;
    }
    return first;
}

static sl_status template_from_config(const char *folder, sl_meta *meta, sl_error *err) {
    static const char file[] = "tokenizer_config.json";
    char *json;
    size_t n;
    sl_json_doc doc;
    SL_TRY(sl_file_text(folder, file, TOKENIZER_CONFIG_MAX_BYTES, &json, &n, err));
    if (!json) return SL_OK;
    sl_status status = sl_json_read(&doc, json, n, TOKENIZER_CONFIG_MAX_VALUES, err);
    free(json);
    const char *text = find_template(doc.values);
    if (status == SL_OK && text) status = sl_meta_set_string(meta, "chat_template", text, err);
    sl_json_release(&doc);
    return status == SL_OK ? SL_OK : sl_file_context(file, status, err);
}

static sl_status add_template(const char *folder, sl_meta *meta, sl_error *err) {
    static const char file[] = "chat_template.jinja";
    char *text;
    size_t n;
    SL_TRY(sl_file_text(folder, file, TEMPLATE_MAX_BYTES, &text, &n, err));
    if (!text) return template_from_config(folder, meta, err);
    sl_status status = memchr(text, 0, n) || !sl_file_utf8(text, n)
                           ? sl_fail(err, SL_E_FORMAT, "%s: the text is not UTF-8 or holds a zero byte", file)
                           : sl_meta_set_string(meta, "chat_template", text, err);
    free(text);
    return status;
}

sl_status sl_folder_tokenizer(const char *folder, size_t n_vocab, sl_meta *meta, sl_error *err) {
    char *json;
    size_t n;
    SL_TRY(sl_file_text(folder, "tokenizer.json", SL_TOKENIZER_MAX_BYTES, &json, &n, err));
    if (!json) return refuse_others(folder, err);
    sl_status status = add_tokenizer(json, n, n_vocab, meta, err);
    free(json);
    return status == SL_OK ? add_template(folder, meta, err) : status;
}
