/* Search for added tokens in a sorted list. Most positions are settled by their first byte; the rest narrow
 * a range by binary search, at most SL_MAX_ADDED_BYTES times. The rules for white space and whole words are
 * those of Hugging Face's tokenizers. */
#include "text/added.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

sl_status sl_added_add(sl_added_set *set, const sl_added *item, sl_error *err) {
    assert(item->n > 0 && item->n <= SL_MAX_ADDED_BYTES);
    sl_added copy = *item;
    copy.text = malloc(item->n + 1);
    if (!copy.text || !sl_grow((void **)&set->items, &set->cap, set->n + 1, sizeof *set->items)) {
        free(copy.text);
        return sl_fail(err, SL_E_MEMORY, "out of memory for %zu added tokens", set->n + 1);
    }
    memcpy(copy.text, item->text, item->n);
    set->items[set->n++] = copy;
    return SL_OK;
}

static int compare(const void *a, const void *b) {
    const sl_added *x = a, *y = b;
    int order = memcmp(x->text, y->text, sl_min(x->n, y->n));
    return order ? order : (x->n > y->n) - (x->n < y->n);
}

sl_status sl_added_sort(sl_added_set *set, sl_error *err) {
    sl_name_buf name;
    if (set->n) qsort(set->items, set->n, sizeof *set->items, compare);
    for (size_t i = 1; i < set->n; i++)
        if (compare(&set->items[i - 1], &set->items[i]) == 0)
            return sl_fail(err, SL_E_FORMAT, "tokenizer.json: two added tokens have the text \"%s\"",
                           sl_name_escape(set->items[i].text, set->items[i].n, &name));
    for (size_t b = 0, i = 0; b <= 256; b++) {
        while (i < set->n && set->items[i].text[0] < b) i++;
        set->first[b] = i;
    }
    return SL_OK;
}

void sl_added_release(sl_added_set *set) {
    for (size_t i = 0; i < set->n; i++) free(set->items[i].text);
    free(set->items);
    *set = (sl_added_set){ 0 };
}

/* First item of low .. high - 1 whose byte at depth is >= byte; all of them are longer than depth. */
static size_t lower_bound(const sl_added_set *set, size_t low, size_t high, size_t depth, unsigned byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (set->items[middle].text[depth] < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The longest item that text begins with; NULL: none. */
static const sl_added *longest(const sl_added_set *set, const uint8_t *text, size_t n) {
    const sl_added *best = NULL;
    size_t low = set->first[text[0]], high = set->first[text[0] + 1];
    for (size_t depth = 1; low < high; depth++) {
        if (set->items[low].n == depth) best = &set->items[low++]; /* the shortest of a range comes first */
        if (depth == n) break;
        low = lower_bound(set, low, high, depth, text[depth]);
        high = lower_bound(set, low, high, depth, text[depth] + 1u);
    }
    return best;
}

static bool stands_alone(const uint8_t *text, size_t n, size_t start, size_t end) {
    bool before = start > 0 && sl_utf8_is_word(sl_utf8_last(text, start, NULL));
    bool after = sl_utf8_char(text + end, n - end) && sl_utf8_is_word(sl_utf8_code(text + end, NULL));
    return !before && !after;
}

static size_t spaces_before(const uint8_t *text, size_t from, size_t start) {
    size_t n_char = 0;
    while (start > from && sl_utf8_is_space(sl_utf8_last(text + from, start - from, &n_char))) start -= n_char;
    return start;
}

static size_t spaces_after(const uint8_t *text, size_t n, size_t end) {
    for (size_t n_char; (n_char = sl_utf8_char(text + end, n - end)) > 0; end += n_char)
        if (!sl_utf8_is_space(sl_utf8_code(text + end, NULL))) break;
    return end;
}

bool sl_added_find(const sl_added_set *set, const uint8_t *text, size_t n, size_t from, bool special,
                   sl_added_match *match) {
    assert(from <= n && set->first[256] == set->n); /* sorted */
    if (!set->n) return false;
    for (size_t i = from; i < n;) {
        const sl_added *item = longest(set, text + i, n - i);
        if (!item) {
            i++;
            continue;
        }
        size_t end = i + item->n;
        if ((item->special && !special) || (item->single_word && !stands_alone(text, n, i, end))) {
            i = end;
            continue;
        }
        match->start = item->lstrip ? spaces_before(text, from, i) : i;
        match->end = item->rstrip ? spaces_after(text, n, end) : end;
        match->id = item->id;
        return true;
    }
    return false;
}
