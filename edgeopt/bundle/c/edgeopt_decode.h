/* Decodes at load a model that `edgeopt bundle code` made small: from flash to RAM, byte for byte the model file.
 * C11 or C++17; no malloc. Hostile input is refused, and never read or written outside what is given. */
#ifndef EDGEOPT_DECODE_H
#define EDGEOPT_DECODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  EDGEOPT_DECODED = 0,
  EDGEOPT_NOT_CODED = 1, /* not a coded model, or cut off */
  EDGEOPT_TOO_SMALL = 2, /* model or work has fewer bytes than it needs */
  EDGEOPT_DAMAGED = 3    /* what came out is not the model; do not use it */
};

/* Bytes of the model, and of the memory that decoding works in; both are 0 for what is no coded model. Work is tens of
 * kilobytes, mostly less than the arena that the model needs afterwards and can share. */
typedef struct EdgeoptDecodeSizes {
  size_t model_bytes;
  size_t work_bytes;
} EdgeoptDecodeSizes;

EdgeoptDecodeSizes edgeopt_decode_sizes(const unsigned char *coded, size_t coded_bytes);

/* model is aligned as the interpreter wants it (16 bytes for TFLite), work to 4 bytes. */
int edgeopt_decode(const unsigned char *coded, size_t coded_bytes, unsigned char *model, size_t model_bytes, void *work,
                   size_t work_bytes);

#ifdef __cplusplus
}
#endif

#endif
