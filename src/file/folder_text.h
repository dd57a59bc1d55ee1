/* The texts of a model folder: config.json, tokenizer.json, chat template. */
#ifndef SL_FILE_FOLDER_TEXT_H
#define SL_FILE_FOLDER_TEXT_H

#include "file/file.h"

/* config.json, and the begin and end tokens from generation_config.json where config.json has none. */
sl_status sl_folder_config(const char *folder, sl_meta *meta, sl_error *err);
/* tokenizer.json, checked and without white space, and the chat template, as metadata. A folder without any
 * tokenizer is fine; one with another kind of tokenizer is refused by its file's name. */
sl_status sl_folder_tokenizer(const char *folder, size_t n_vocab, sl_meta *meta, sl_error *err);

#endif
