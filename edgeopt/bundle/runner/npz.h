/* NumPy's .npz, read: a zip archive of .npy arrays that are stored, not compressed.
 * Sources: PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16; NumPy's numpy/lib/format.py. */
#ifndef NPZ_H
#define NPZ_H

#include <stddef.h>
#include <stdint.h>

#include "file.h"

enum { MAX_RANK = 8 };

typedef enum DType { DTYPE_BOOL, DTYPE_INT, DTYPE_UINT, DTYPE_FLOAT, DTYPE_TEXT } DType;

typedef struct Array {
  char *name; /* "input/image" */
  DType dtype;
  size_t item_bytes; /* of one element; little-endian */
  size_t rank;
  size_t shape[MAX_RANK];
  size_t num_items;
  const unsigned char *data; /* not aligned */
} Array;

typedef struct Npz {
  Array *arrays;
  size_t count;
} Npz;

/* Reads the arrays of a file; ends the program if it is damaged. The arrays point into content. */
Npz npz_read(const Bytes *content, const char *file);

/* The array of a name, PREFIX/NAME if name is not empty; NULL if there is none. */
const Array *npz_find(const Npz *npz, const char *prefix, const char *name);

/* How many elements one entry of the first axis has. */
size_t array_row_items(const Array *array);

/* One entry of the first axis: an array of one axis less, without a name. */
Array array_row(const Array *array, size_t row);

int array_is_integer(const Array *array);

/* One element; array_integer is for integers and booleans, array_real for these and floats. */
int64_t array_integer(const Array *array, size_t index);
double array_real(const Array *array, size_t index);

/* One string of a text array as UTF-8; NULL if it is no text or not Unicode. */
const char *array_text(const Array *array, size_t index);

#endif
