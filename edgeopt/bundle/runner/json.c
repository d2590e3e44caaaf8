#include "json.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

enum { MAX_DEPTH = 64 }; /* bundle.json has 6 */

typedef struct Reader {
  const char *at, *end;
  const char *problem;
  int depth;
} Reader;

static int read_value(Reader *reader, Json *json);

static int refuse(Reader *reader, const char *problem) {
  if (reader->problem == NULL) reader->problem = problem;
  return 0;
}

static void skip_space(Reader *reader) {
  while (reader->at < reader->end && strchr(" \t\n\r", *reader->at) != NULL && *reader->at != '\0') reader->at++;
}

static int take(Reader *reader, char wanted) {
  if (reader->at == reader->end || *reader->at != wanted) return 0;
  reader->at++;
  return 1;
}

static int take_word(Reader *reader, const char *word) {
  const size_t length = strlen(word);
  if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0) {
    return refuse(reader, "expected a value");
  }
  reader->at += length;
  return 1;
}

static size_t take_digits(Reader *reader) {
  const char *start = reader->at;
  while (reader->at < reader->end && isdigit((unsigned char)*reader->at)) reader->at++;
  return (size_t)(reader->at - start);
}

static char *copied(const char *start, size_t length) {
  char *copy = allocate(length + 1, 1);
  memcpy(copy, start, length);
  return copy;
}

static int read_number(Reader *reader, Json *json) {
  const char *start = reader->at;
  take(reader, '-');
  const int leading_zero = reader->at < reader->end && *reader->at == '0';
  const size_t digits = take_digits(reader);
  if (digits == 0) return refuse(reader, "expected a value");
  if (leading_zero && digits > 1) return refuse(reader, "a number starts with 0");
  if (take(reader, '.') && take_digits(reader) == 0) return refuse(reader, "a number ends with its point");
  if (reader->at < reader->end && (*reader->at == 'e' || *reader->at == 'E')) {
    reader->at++;
    if (!take(reader, '-')) take(reader, '+');
    if (take_digits(reader) == 0) return refuse(reader, "a number ends with its exponent");
  }
  json->type = JSON_NUMBER;
  json->text = copied(start, (size_t)(reader->at - start));
  return 1;
}

static int read_hex4(Reader *reader, unsigned *unit) {
  *unit = 0;
  if (reader->end - reader->at < 4) return refuse(reader, "an escape is cut off");
  for (int i = 0; i < 4; i++, reader->at++) {
    const char digit = (char)tolower((unsigned char)*reader->at);
    if (!isxdigit((unsigned char)digit)) return refuse(reader, "an escape is not hexadecimal");
    *unit = *unit << 4 | (unsigned)(isdigit((unsigned char)digit) ? digit - '0' : digit - 'a' + 10);
  }
  return 1;
}

static int read_unicode_escape(Reader *reader, Text *text) {
  unsigned point, low;
  if (!read_hex4(reader, &point)) return 0;
  if (point == 0) return refuse(reader, "a string holds a zero character");
  if (point >= 0xd800 && point < 0xe000) {
    if (point >= 0xdc00 || !take(reader, '\\') || !take(reader, 'u') || !read_hex4(reader, &low) || low < 0xdc00 ||
        low >= 0xe000) {
      return refuse(reader, "a string holds half of a surrogate pair");
    }
    point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
  }
  text_utf8(text, point);
  return 1;
}

static int read_escape(Reader *reader, Text *text) {
  static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
  if (reader->at == reader->end) return refuse(reader, "an escape is cut off");
  const char letter = *reader->at++;
  if (letter == 'u') return read_unicode_escape(reader, text);
  const char *found = letter == '\0' ? NULL : strchr(letters, letter);
  if (found == NULL) return refuse(reader, "an unknown escape");
  text_bytes(text, meanings + (found - letters), 1);
  return 1;
}

static int read_string(Reader *reader, const char **string) {
  Text text = {NULL, 0, 0};
  if (!take(reader, '"')) return refuse(reader, "expected a string");
  text_bytes(&text, "", 0);
  while (!take(reader, '"')) {
    if (reader->at == reader->end) return refuse(reader, "a string is cut off");
    if ((unsigned char)*reader->at < 0x20) return refuse(reader, "a control character in a string");
    if (take(reader, '\\')) {
      if (!read_escape(reader, &text)) return 0;
    } else {
      text_bytes(&text, reader->at++, 1);
    }
  }
  if (!is_utf8(text.data, text.length)) return refuse(reader, "a string is not UTF-8");
  *string = text.data;
  return 1;
}

static int by_key(const void *left, const void *right) {
  return strcmp(((const Json *)left)->key, ((const Json *)right)->key); /* UTF-8 sorts as Unicode does */
}

static int read_items(Reader *reader, Json *json, char end) {
  size_t capacity = 0;
  skip_space(reader);
  if (take(reader, end)) return 1;
  do {
    if (json->count == capacity) {
      capacity = 2 * capacity + 4;
      json->items = reallocate(json->items, capacity, sizeof *json->items);
    }
    Json *item = memset(&json->items[json->count++], 0, sizeof *item);
    skip_space(reader);
    if (json->type == JSON_OBJECT) {
      if (!read_string(reader, &item->key)) return 0;
      skip_space(reader);
      if (!take(reader, ':')) return refuse(reader, "expected ':'");
    }
    if (!read_value(reader, item)) return 0;
    skip_space(reader);
  } while (take(reader, ','));
  if (!take(reader, end)) return refuse(reader, json->type == JSON_OBJECT ? "expected ',' or '}'" : "expected ',' or ']'");
  return 1;
}

static int read_object(Reader *reader, Json *json) {
  if (!read_items(reader, json, '}')) return 0;
  if (json->count > 0) qsort(json->items, json->count, sizeof *json->items, by_key);
  for (size_t i = 1; i < json->count; i++) {
    if (by_key(&json->items[i - 1], &json->items[i]) == 0) return refuse(reader, "a key comes twice");
  }
  return 1;
}

static int read_value(Reader *reader, Json *json) {
  int is_read = 0;
  if (++reader->depth > MAX_DEPTH) return refuse(reader, "it is nested too deeply");
  skip_space(reader);
  if (reader->at == reader->end) return refuse(reader, "it is cut off");
  switch (*reader->at) {
    case '{':
      reader->at++;
      json->type = JSON_OBJECT;
      is_read = read_object(reader, json);
      break;
    case '[':
      reader->at++;
      json->type = JSON_ARRAY;
      is_read = read_items(reader, json, ']');
      break;
    case '"':
      json->type = JSON_STRING;
      is_read = read_string(reader, &json->text);
      break;
    case 'n': is_read = take_word(reader, "null"); break;
    case 't':
      json->type = JSON_TRUE;
      is_read = take_word(reader, "true");
      break;
    case 'f':
      json->type = JSON_FALSE;
      is_read = take_word(reader, "false");
      break;
    default: is_read = read_number(reader, json);
  }
  reader->depth--;
  return is_read;
}

const Json *json_read(const char *text, size_t length, const char **problem) {
  Reader reader = {text, text + length, NULL, 0};
  Json *json = allocate(1, sizeof *json);
  if (read_value(&reader, json)) {
    skip_space(&reader);
    if (reader.at == reader.end) return json;
    reader.problem = "something stands behind its end";
  }
  *problem = reader.problem;
  return NULL;
}

static void write_value(Text *text, const Json *json, const char *omitted, int depth) {
  static const char *const words[] = {"null", "false", "true"};
  const int is_object = json->type == JSON_OBJECT;
  int is_first = 1;
  if (json->type == JSON_NUMBER) {
    text_add(text, "%s", json->text);
  } else if (json->type == JSON_STRING) {
    text_json_string(text, json->text);
  } else if (json->type < JSON_NUMBER) {
    text_add(text, "%s", words[json->type]);
  } else {
    text_add(text, is_object ? "{" : "[");
    for (size_t i = 0; i < json->count; i++) {
      if (is_object && omitted != NULL && strcmp(json->items[i].key, omitted) == 0) continue;
      text_add(text, "%s\n%*s", is_first ? "" : ",", 2 * (depth + 1), "");
      if (is_object) {
        text_json_string(text, json->items[i].key);
        text_add(text, ": ");
      }
      write_value(text, &json->items[i], NULL, depth + 1);
      is_first = 0;
    }
    if (!is_first) text_add(text, "\n%*s", 2 * depth, "");
    text_add(text, is_object ? "}" : "]");
  }
}

void json_write(Text *text, const Json *json, const char *omitted) { write_value(text, json, omitted, 0); }

const Json *json_find(const Json *json, const char *key) {
  for (size_t i = 0; json->type == JSON_OBJECT && i < json->count; i++) {
    if (strcmp(json->items[i].key, key) == 0) return &json->items[i];
  }
  return NULL;
}

const Json *json_member(const Json *json, const char *key, JsonType type) {
  static const char *const names[] = {"null", "a boolean", "a boolean", "a number", "a string", "a list", "an object"};
  const Json *found = json_find(json, key);
  if (found == NULL) fail(EXIT_DAMAGED, "bundle.json has no '%s' where it should", key);
  if (found->type != type) fail(EXIT_DAMAGED, "bundle.json: '%s' is %s, expected %s", key, names[found->type], names[type]);
  return found;
}

const char *json_string(const Json *json, const char *key) { return json_member(json, key, JSON_STRING)->text; }

double json_number(const Json *json, const char *key) { return strtod(json_member(json, key, JSON_NUMBER)->text, NULL); }

double json_number_or_nan(const Json *json, const char *key) {
  const Json *found = json_find(json, key);
  return found != NULL && found->type == JSON_NULL ? (double)NAN : json_number(json, key);
}
