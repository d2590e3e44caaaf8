/* A whole file in memory. */
#ifndef FILE_H
#define FILE_H

#include <stddef.h>

typedef struct Bytes {
  unsigned char *data; /* a zero byte stands behind the last one */
  size_t size;
} Bytes;

/* Reads a regular file; returns 0, or what errno says. */
int read_file(const char *path, Bytes *content);

/* Returns folder/name. */
char *path_in(const char *folder, const char *name);

#endif
