/* Text that grows while it is written, and JSON's way to write strings and numbers. */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>

typedef struct Text {
  char *data; /* zero-terminated once something was added */
  size_t length, capacity;
} Text;

void text_bytes(Text *text, const char *data, size_t length);
void text_add(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Adds a Unicode code point as UTF-8. */
void text_utf8(Text *text, unsigned point);

/* Says whether bytes are UTF-8 as RFC 3629 defines it, without zero bytes. */
int is_utf8(const char *data, size_t length);

/* Adds a string in quotes, as Python's json.dumps(..., ensure_ascii=False) does. */
void text_json_string(Text *text, const char *string);

/* Adds the shortest number that reads back as this one; null for NaN and infinity, which JSON does not have. */
void text_json_number(Text *text, double number);

#endif
