/* Added tokens: texts that are cut out before anything else and have an id of their own. */
#ifndef SL_TEXT_ADDED_H
#define SL_TEXT_ADDED_H

#include "base/mem.h"

enum { SL_MAX_ADDED_BYTES = 1024 }; /* bounds the search: no text is compared further at any position */

typedef struct sl_added {
    uint8_t *text; /* [n], owned */
    size_t n;
    int32_t id;
    bool special;
    bool lstrip, rstrip; /* white space before or after it belongs to it */
    bool single_word;    /* only where no word character touches it */
} sl_added;

/* Sorted by text, so that those with a common beginning are a range: a search narrows it byte by byte. */
typedef struct sl_added_set {
    sl_added *items;
    size_t n, cap;
    size_t first[257]; /* items that begin with byte b are first[b] .. first[b + 1] - 1 */
} sl_added_set;

/* Copies the item and its text. Call sl_added_sort after the last. */
sl_status sl_added_add(sl_added_set *set, const sl_added *item, sl_error *err);
/* Two items with one text are an error. */
sl_status sl_added_sort(sl_added_set *set, sl_error *err);
void sl_added_release(sl_added_set *set);

typedef struct sl_added_match { size_t start, end; int32_t id; } sl_added_match;
/* The next match in text[from .. n): the leftmost, and of those the longest. special: special tokens too;
 * otherwise their text is passed over as ordinary text. False: none. */
bool sl_added_find(const sl_added_set *set, const uint8_t *text, size_t n, size_t from, bool special,
                   sl_added_match *match);

#endif
