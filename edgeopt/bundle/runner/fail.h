/* How the program ends when it cannot come to a verdict. It runs once and leaves its memory to the system. */
#ifndef FAIL_H
#define FAIL_H

#include <stddef.h>

enum {
  EXIT_PASSED = 0,
  EXIT_ERROR = 1,
  EXIT_USAGE = 2,
  EXIT_DAMAGED = 11,   /* a file of the bundle is missing or not the one that was built */
  EXIT_NOT_EQUAL = 12, /* the verdict is no */
  EXIT_NO_RUNTIME = 13 /* libLiteRt.so is missing, too old or cannot run this model */
};

/* Prints one line to stderr and ends the program. */
_Noreturn void fail(int exit_code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Returns zeroed memory for count items of a size; ends the program if there is none. */
void *allocate(size_t count, size_t size);

/* Returns memory that holds at least count items, with what it held before. */
void *reallocate(void *memory, size_t count, size_t size);

#endif
