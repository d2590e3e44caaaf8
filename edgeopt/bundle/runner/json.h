/* JSON, RFC 8259: read into a tree, written as edgeopt writes bundle.json. */
#ifndef JSON_H
#define JSON_H

#include <stddef.h>

#include "text.h"

typedef enum JsonType { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct Json {
  JsonType type;
  const char *key;    /* of a member of an object */
  const char *text;   /* a string, or a number as it was written */
  struct Json *items; /* of an array, or of an object in the order of their keys */
  size_t count;
} Json;

/* Reads one document; returns NULL and a reason for what is none. What Python's reader would take in two ways is
 * refused too: a key that comes twice, half of a surrogate pair, a zero character. */
const Json *json_read(const char *text, size_t length, const char **problem);

/* Adds json.dumps(..., indent=2, sort_keys=True, ensure_ascii=False), without the member that is called omitted. */
void json_write(Text *text, const Json *json, const char *omitted);

/* A member of an object; NULL if json is none or does not have it. */
const Json *json_find(const Json *json, const char *key);

/* The same, but what is missing or of another type ends the program: bundle.json is damaged. */
const Json *json_member(const Json *json, const char *key, JsonType type);
const char *json_string(const Json *json, const char *key);
double json_number(const Json *json, const char *key);
/* NaN stands for null. */
double json_number_or_nan(const Json *json, const char *key);

#endif
