#include "npz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "text.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "golden.npz is little-endian, and so must the CPU be"
#endif

enum { END_BYTES = 22, CENTRAL_BYTES = 46, LOCAL_BYTES = 30, MAX_COMMENT = 65535 };

/* A part of the file, with the file's name for messages. */
typedef struct Part {
  const unsigned char *data;
  size_t size;
  const char *file;
} Part;

static _Noreturn void refuse(const Part *part, const char *problem) {
  fail(EXIT_DAMAGED, "%s is damaged: %s", part->file, problem);
}

static uint32_t little(const unsigned char *bytes, int count) {
  uint32_t value = 0;
  for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
  return value;
}

/* Returns size bytes from an offset, after a look at whether they are there. */
static const unsigned char *bytes_at(const Part *part, size_t offset, size_t size, const char *what) {
  if (offset > part->size || size > part->size - offset) refuse(part, what);
  return part->data + offset;
}

static const unsigned char *find_end(const Part *zip) {
  for (size_t back = END_BYTES; back <= zip->size && back <= END_BYTES + MAX_COMMENT; back++) {
    const unsigned char *end = zip->data + zip->size - back;
    if (memcmp(end, "PK\5\6", 4) == 0) return end;
  }
  refuse(zip, "it is no zip archive, or cut off");
}

/* Reads "(16, 10)" into the shape and the number of elements. */
static void read_shape(const Part *part, Array *array, const char *at) {
  array->num_items = 1;
  for (at++; *at != ')'; at += strspn(at, ", ")) {
    char *end;
    if (*at < '0' || *at > '9' || array->rank == MAX_RANK) refuse(part, "an array's shape cannot be read");
    const unsigned long long size = strtoull(at, &end, 10);
    if (size > SIZE_MAX || (size > 0 && array->num_items > SIZE_MAX / size)) refuse(part, "an array is too large");
    array->shape[array->rank++] = (size_t)size;
    array->num_items *= (size_t)size;
    at = end;
  }
}

/* Reads "<f4" and the like. */
static void read_dtype(const Part *part, Array *array, const char *descr) {
  static const char kinds[] = "biufU";
  const char *kind = descr[0] == '\0' || descr[1] == '\0' ? NULL : strchr(kinds, descr[1]);
  const unsigned long size = kind == NULL ? 0 : strtoul(descr + 2, NULL, 10);
  const int is_float = kind != NULL && *kind == 'f', is_text = kind != NULL && *kind == 'U';
  const int is_sized = is_text ? size <= 1 << 20 : size == 4 || size == 8 || (!is_float && (size == 1 || size == 2));
  if (kind == NULL || strchr("<|", descr[0]) == NULL || !is_sized) {
    refuse(part, "an array has a type that no golden vector has");
  }
  array->dtype = (DType)(kind - kinds);
  array->item_bytes = is_text ? 4 * (size_t)size : (size_t)size;
}

static const char *value_of(const Part *part, const char *header, const char *key) {
  const char *found = strstr(header, key);
  if (found == NULL) refuse(part, "an array's header cannot be read");
  return found + strlen(key);
}

static void read_array(const Part *npy, Array *array) {
  const unsigned char *magic = bytes_at(npy, 0, 10, "an array is cut off");
  if (memcmp(magic, "\x93NUMPY", 6) != 0) refuse(npy, "an entry is no array");
  const size_t start = magic[6] == 1 ? 10 : 12;
  const size_t length = magic[6] == 1 ? little(magic + 8, 2) : little(bytes_at(npy, 8, 4, "an array is cut off"), 4);
  char *header = allocate(length + 1, 1);
  memcpy(header, bytes_at(npy, start, length, "an array's header is cut off"), length);
  read_dtype(npy, array, value_of(npy, header, "'descr': '"));
  read_shape(npy, array, value_of(npy, header, "'shape': "));
  if (strncmp(value_of(npy, header, "'fortran_order': "), "False", 5) != 0) refuse(npy, "an array is in Fortran order");
  free(header);
  array->data = npy->data + start + length;
  const size_t size = npy->size - start - length;
  if (array->item_bytes > 0 && array->num_items > SIZE_MAX / array->item_bytes) refuse(npy, "an array is too large");
  if (array->num_items * array->item_bytes != size) refuse(npy, "an array is not as large as its shape says");
}

static Part read_local(const Part *zip, const unsigned char *central, const char *name) {
  const uint32_t method = little(central + 10, 2), size = little(central + 24, 4), offset = little(central + 42, 4);
  if (method != 0) {
    fail(EXIT_DAMAGED, "%s: %s is compressed (method %u), expected stored (0): build the bundle again", zip->file, name,
         (unsigned)method);
  }
  if (little(central + 8, 2) & 1) refuse(zip, "an entry is encrypted");
  if (size == UINT32_MAX || offset == UINT32_MAX) refuse(zip, "it is larger than 4 GB");
  if (little(central + 20, 4) != size) refuse(zip, "an entry has two sizes");
  const unsigned char *local = bytes_at(zip, offset, LOCAL_BYTES, "an entry is cut off");
  if (memcmp(local, "PK\3\4", 4) != 0) refuse(zip, "an entry is not where it should be");
  const size_t start = offset + (size_t)LOCAL_BYTES + little(local + 26, 2) + little(local + 28, 2);
  const Part npy = {bytes_at(zip, start, size, "an entry is cut off"), size, zip->file};
  return npy;
}

static char *read_name(const Part *zip, const unsigned char *bytes, size_t length) {
  if (length < 4 || memcmp(bytes + length - 4, ".npy", 4) != 0) refuse(zip, "an entry is no array");
  char *name = allocate(length, 1);
  memcpy(name, bytes, length - 4);
  return name;
}

Npz npz_read(const Bytes *content, const char *file) {
  const Part zip = {content->data, content->size, file};
  const unsigned char *end = find_end(&zip);
  const size_t count = little(end + 10, 2);
  size_t offset = little(end + 16, 4);
  Npz npz = {allocate(count, sizeof *npz.arrays), count};
  for (size_t i = 0; i < count; i++) {
    const unsigned char *central = bytes_at(&zip, offset, CENTRAL_BYTES, "its directory is cut off");
    if (memcmp(central, "PK\1\2", 4) != 0) refuse(&zip, "its directory cannot be read");
    const size_t length = little(central + 28, 2);
    npz.arrays[i].name = read_name(&zip, bytes_at(&zip, offset + CENTRAL_BYTES, length, "its directory is cut off"), length);
    const Part npy = read_local(&zip, central, npz.arrays[i].name);
    read_array(&npy, &npz.arrays[i]);
    offset += CENTRAL_BYTES + length + little(central + 30, 2) + little(central + 32, 2);
  }
  return npz;
}

const Array *npz_find(const Npz *npz, const char *prefix, const char *name) {
  const size_t length = strlen(prefix);
  for (size_t i = 0; i < npz->count; i++) {
    const char *found = npz->arrays[i].name;
    if (strncmp(found, prefix, length) != 0) continue;
    if (name[0] == '\0' ? found[length] == '\0' : found[length] == '/' && strcmp(found + length + 1, name) == 0) {
      return &npz->arrays[i];
    }
  }
  return NULL;
}

size_t array_row_items(const Array *array) {
  return array->rank == 0 || array->shape[0] == 0 ? 0 : array->num_items / array->shape[0];
}

Array array_row(const Array *array, size_t row) {
  Array part = *array;
  part.name = NULL;
  part.rank--;
  memmove(part.shape, part.shape + 1, part.rank * sizeof *part.shape);
  part.num_items = array_row_items(array);
  part.data += row * part.num_items * part.item_bytes;
  return part;
}

int array_is_integer(const Array *array) { return array->dtype == DTYPE_INT || array->dtype == DTYPE_UINT; }

int64_t array_integer(const Array *array, size_t index) {
  uint64_t bits = 0;
  memcpy(&bits, array->data + index * array->item_bytes, array->item_bytes);
  if (array->dtype == DTYPE_INT && array->item_bytes < sizeof bits) {
    const uint64_t sign = (uint64_t)1 << (8 * array->item_bytes - 1);
    bits = (bits ^ sign) - sign;
  }
  int64_t value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

double array_real(const Array *array, size_t index) {
  const unsigned char *item = array->data + index * array->item_bytes;
  float single;
  double value;
  if (array->dtype != DTYPE_FLOAT) return (double)array_integer(array, index);
  if (array->item_bytes == sizeof value) {
    memcpy(&value, item, sizeof value);
    return value;
  }
  memcpy(&single, item, sizeof single);
  return (double)single;
}

const char *array_text(const Array *array, size_t index) {
  Text text = {NULL, 0, 0};
  size_t length = array->item_bytes / 4;
  const unsigned char *item = array->data + index * array->item_bytes;
  if (array->dtype != DTYPE_TEXT) return NULL;
  while (length > 0 && little(item + 4 * (length - 1), 4) == 0) length--; /* NumPy fills up with zeros */
  text_bytes(&text, "", 0);
  for (size_t i = 0; i < length; i++) {
    const uint32_t point = little(item + 4 * i, 4);
    if (point == 0 || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return NULL;
    text_utf8(&text, point);
  }
  return text.data;
}
