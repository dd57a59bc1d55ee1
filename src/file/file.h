/* What the files of this room share: the byte layout of .slu, text files of a model folder, config.json,
 * safetensors, the match of found tensors against a schema, and the import of a folder. */
#ifndef SL_FILE_FILE_H
#define SL_FILE_FILE_H

#include "base/mem.h"
#include "file/slu.h"
#include "os/os.h"
#include "text/json.h"

/* ---- .slu layout (docs/format.md) --------------------------------------------------------------- */

enum {
    SL_SLU_HEADER = 48,
    SL_SLU_CHECKSUM_AT = 40,    /* where the header's checksum stands */
    SL_SLU_META_ENTRY = 16,     /* key bytes 4, type 1, is list 1, zero 2, values 8; then key and values */
    SL_SLU_DIR_ENTRY = SL_MAX_NAME + 64, /* name, type 4, n_dim 4, shape 4 x 8, offset 8, bytes 8, checksum 8 */
    SL_META_MAX_KEY = 255,      /* bytes of a key */
    SL_META_MAX_BYTES = 4 << 20,   /* of the entries besides the tokenizer, together */
    SL_META_MAX_VALUES = 1 << 18   /* values and keys within JSON, of all entries together */
};
#define SL_SLU_MAGIC "SLUICE\r\n"

/* Bytes of an entry in the file. */
uint64_t sl_slu_entry_bytes(const sl_meta_entry *entry);
/* What reader and writer demand of metadata: entries besides the tokenizer within SL_META_MAX_BYTES, JSON that is
 * an object or a list and within SL_META_MAX_VALUES. So all that is written can be read, in bounded time. */
sl_status sl_slu_check_meta(const sl_meta *meta, sl_error *err);
/* As sl_slu_open, over bytes in memory that stay the caller's. */
sl_status sl_slu_parse(sl_slu *slu, const void *data, uint64_t size, sl_error *err);
/* XXH3-64 of the first n_bytes of a file with its checksum field as zero; false: out of memory. */
bool sl_slu_header_checksum(const uint8_t *data, uint64_t n_bytes, uint64_t *checksum);
/* Bytes of a tensor's data; false: a dimension is out of 1..2^31-1 or the product does not fit. */
bool sl_slu_tensor_bytes(const sl_slu_tensor *tensor, uint64_t *bytes);
/* Bytes of header, metadata and directory up to the first tensor's data. */
static inline uint64_t sl_slu_data_offset(uint64_t meta_bytes, uint64_t n_tensor) {
    uint64_t end = SL_SLU_HEADER + meta_bytes + n_tensor * SL_SLU_DIR_ENTRY;
    return (end + SL_SLU_ALIGN - 1) / SL_SLU_ALIGN * SL_SLU_ALIGN;
}

/* The last sl_status with "what: " put before its text. what must be clean: names through sl_name. */
sl_status sl_file_context(const char *what, sl_status status, sl_error *err);
/* True for valid UTF-8 without overlong forms and surrogates. */
bool sl_file_utf8(const void *text, size_t n_bytes);

/* ---- a folder ----------------------------------------------------------------------------------- */

/* folder/name, malloc'd; NULL: out of memory. */
char *sl_file_path(const char *folder, const char *name);
/* The content of the regular file folder/name as malloc'd bytes, NUL-terminated besides; at most max_bytes.
 * Absent: *text is NULL and the status SL_OK. Errors name the file. */
sl_status sl_file_text(const char *folder, const char *name, uint64_t max_bytes, char **text, size_t *n_bytes,
                       sl_error *err);

/* ---- config.json -------------------------------------------------------------------------------- */

enum { SL_CONFIG_MAX_BYTES = 1 << 23, SL_CONFIG_MAX_VALUES = 1 << 17 };

/* The text of a config.json to metadata. Objects are flattened with dots, null is dropped, a list of numbers
 * with a fraction among them is a list of floats, and objects and lists of unlike or composed values are kept
 * whole as SL_META_JSON. Keys of the .slu's own ("tokenizer",
 * "chat_template", "sluice.*") and keys longer than SL_META_MAX_KEY are left out. meta starts zeroed and is
 * released on failure. */
sl_status sl_config_parse(const char *json, size_t n_bytes, sl_meta *meta, sl_error *err);

/* ---- safetensors -------------------------------------------------------------------------------- */

enum { SL_ST_MAX_DIM = 8, SL_ST_MAX_TENSOR = 1 << 20, SL_ST_MAX_HEADER = 100 * 1000 * 1000 };

typedef struct sl_st_tensor {
    const char *name;   /* of any length */
    sl_type type;       /* SL_F32, SL_F16 or SL_BF16 */
    uint32_t n_dim, shard;
    uint64_t shape[SL_ST_MAX_DIM];
    uint64_t offset, bytes; /* absolute in its shard */
} sl_st_tensor;

typedef struct sl_st_shard {
    char *name;
    uint64_t size;
    char *header; /* names of tensors point into it */
} sl_st_shard;

/* A checkpoint: one file, or shards with an index. */
typedef struct sl_safetensors {
    sl_st_shard *shards;
    size_t n_shard, shard_cap;
    sl_st_tensor *tensors; /* sorted by name */
    size_t n_tensor, tensor_cap;
} sl_safetensors;

/* Parses the header of one file (n_bytes of JSON, then data_bytes of data that begin at data_offset) and
 * appends its tensors as those of the given shard. Names are unescaped inside json, which must live on. */
sl_status sl_safetensors_parse(char *json, size_t n_bytes, uint64_t data_offset, uint64_t data_bytes,
                               uint32_t shard,
                               sl_safetensors *st, sl_error *err);
/* Starts from a zeroed struct; on failure it is released again. The shards stay closed. */
sl_status sl_safetensors_open(sl_safetensors *st, const char *folder, sl_error *err);
void sl_safetensors_close(sl_safetensors *st);

/* ---- found tensors against the schema ----------------------------------------------------------- */

typedef struct sl_found { const char *name; uint32_t n_dim; const uint64_t *shape; } sl_found;

/* Called with lines of a list; the list's last line goes to err. */
typedef void (*sl_line_fn)(void *arg, const char *line);

/* Finds for each spec the tensor of that name: index[i] is its place in found. All missing, surplus and
 * misshapen ones are listed, up to SL_MATCH_LINES: the last line is *err, those before go to line (NULL:
 * only one is wanted, the first). surplus_ok(name) may excuse a tensor that no spec asks for. */
enum { SL_MATCH_LINES = 10000 };
sl_status sl_schema_match(const sl_schema *schema, const sl_found *found, size_t n_found, size_t *index,
                          bool (*surplus_ok)(const char *name), sl_line_fn line, void *arg, sl_error *err);

/* ---- conversion --------------------------------------------------------------------------------- */

typedef struct sl_convert_params {
    const sl_type *type;   /* NULL: as the checkpoint's matrices are stored */
    bool no_tokenizer;
    sl_line_fn line;       /* see sl_schema_match */
    bool (*progress)(void *arg, uint64_t done, uint64_t all); /* bytes read; false: stop (SL_E_IO) */
    void *arg;             /* of both */
} sl_convert_params;

/* A folder of safetensors, config.json and tokenizer.json to a .slu. */
sl_status sl_convert(const char *folder, const char *path, const sl_convert_params *params, sl_error *err);
/* A .slu to one of another type. */
sl_status sl_quantize(const char *in, const char *path, sl_type type, const sl_convert_params *params,
                      sl_error *err);

#endif
