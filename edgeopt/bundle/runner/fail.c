#include "fail.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void fail(int exit_code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(exit_code);
}

void *allocate(size_t count, size_t size) {
  void *memory = calloc(count > 0 ? count : 1, size);
  if (memory == NULL) fail(EXIT_ERROR, "out of memory: %zu x %zu bytes", count, size);
  return memory;
}

void *reallocate(void *memory, size_t count, size_t size) {
  void *larger = count > SIZE_MAX / size ? NULL : realloc(memory, count * size);
  if (larger == NULL) fail(EXIT_ERROR, "out of memory: %zu x %zu bytes", count, size);
  return larger;
}
