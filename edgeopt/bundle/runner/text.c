#include "text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

void text_bytes(Text *text, const char *data, size_t length) {
  if (text->capacity - text->length <= length) {
    text->capacity = 2 * text->capacity + length + 1;
    text->data = reallocate(text->data, text->capacity, 1);
  }
  memcpy(text->data + text->length, data, length);
  text->length += length;
  text->data[text->length] = '\0';
}

void text_add(Text *text, const char *format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = vsnprintf(NULL, 0, format, arguments);
  char *formatted = allocate((size_t)length + 1, 1);
  vsnprintf(formatted, (size_t)length + 1, format, again);
  text_bytes(text, formatted, (size_t)length);
  free(formatted);
  va_end(again);
  va_end(arguments);
}

void text_utf8(Text *text, unsigned point) {
  char bytes[4];
  size_t length = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  static const unsigned char leads[] = {0, 0, 0xc0, 0xe0, 0xf0};
  for (size_t i = length - 1; i > 0; i--, point >>= 6) bytes[i] = (char)(0x80 | (point & 0x3f));
  bytes[0] = (char)(leads[length] | point);
  text_bytes(text, bytes, length);
}

/* Returns the length of the character at data, 0 if there is none. */
static size_t utf8_length(const unsigned char *data, size_t available) {
  const unsigned char lead = data[0];
  const size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (lead == 0 || length > available) return 0;
  for (size_t i = 1; i < length; i++) {
    if ((data[i] & 0xc0) != 0x80) return 0;
  }
  if ((lead == 0xe0 && data[1] < 0xa0) || (lead == 0xf0 && data[1] < 0x90)) return 0;  /* longer than needed */
  if ((lead == 0xed && data[1] >= 0xa0) || (lead == 0xf4 && data[1] >= 0x90)) return 0; /* surrogates, the end */
  return length;
}

int is_utf8(const char *data, size_t length) {
  for (size_t at = 0, step; at < length; at += step) {
    step = utf8_length((const unsigned char *)data + at, length - at);
    if (step == 0) return 0;
  }
  return 1;
}

void text_json_string(Text *text, const char *string) {
  static const char special[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
  text_bytes(text, "\"", 1);
  for (const char *at = string; *at != '\0'; at++) {
    const char *found = strchr(special, *at);
    if (found != NULL) {
      text_add(text, "\\%c", letters[found - special]);
    } else if ((unsigned char)*at < 0x20) {
      text_add(text, "\\u%04x", (unsigned)*at);
    } else {
      text_bytes(text, at, 1);
    }
  }
  text_bytes(text, "\"", 1);
}

void text_json_number(Text *text, double number) {
  char shortest[32] = "null";
  for (int digits = 15; isfinite(number) && digits <= 17; digits++) {
    snprintf(shortest, sizeof shortest, "%.*g", digits, number);
    if (strtod(shortest, NULL) == number) break;
  }
  text_add(text, "%s", shortest);
}
