/* UTF-8 and the few character properties that the text room needs. Bytes are never assumed to be valid. */
#ifndef SL_TEXT_UTF8_H
#define SL_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD, what stands for a broken sequence */

/* Bytes of the valid character at p (1..4); 0: p[0..n) does not begin with one (overlong forms, surrogates
 * and codes above U+10FFFF are not valid). */
size_t sl_utf8_char(const uint8_t *p, size_t n);
/* The same for bytes of any kind, n >= 1. *valid false: they begin with a broken sequence, and the result is the
 * length of what one U+FFFD replaces: the longest beginning of a character (Unicode 15, section 3.9), else a byte. */
size_t sl_utf8_part(const uint8_t *p, size_t n, bool *valid);
/* Bytes of valid UTF-8 that p[0..n) begins with. */
size_t sl_utf8_valid(const uint8_t *p, size_t n);
/* Code point of a valid character; *n_char, if not NULL, gets its bytes. */
int32_t sl_utf8_code(const uint8_t *p, size_t *n_char);
/* Code point of the valid character that ends at p[n); -1: none. *n_char, if not NULL, gets its bytes. */
int32_t sl_utf8_last(const uint8_t *p, size_t n, size_t *n_char);
/* Writes a code point up to U+10FFFF; returns its bytes. */
size_t sl_utf8_put(int32_t code, uint8_t out[4]);
/* n less the bytes at the end that begin a character and could still be completed. */
size_t sl_utf8_whole(const uint8_t *p, size_t n);

bool sl_utf8_is_space(int32_t code); /* White_Space */
bool sl_utf8_is_word(int32_t code);  /* letters, marks, digits, connecting punctuation, joiners */

/* The alphabet of byte-level BPE: the code point that stands for each byte (all below 512). */
void sl_byte_alphabet(int32_t code[256]);

#endif
