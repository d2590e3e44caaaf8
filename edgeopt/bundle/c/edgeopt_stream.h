/* Bytes read from the front and never past the end, and the range decoder that LZMA and weights share: for
 * edgeopt_decode.c and edgeopt_lzma.c. */
#ifndef EDGEOPT_STREAM_H
#define EDGEOPT_STREAM_H

#include <stddef.h>
#include <stdint.h>

typedef struct Bytes {
  const unsigned char *at, *end;
  int is_cut; /* more was asked for than there is, or a number was too large */
} Bytes;

static inline size_t left(const Bytes *bytes) { return (size_t)(bytes->end - bytes->at); }

/* Copies from the first byte to the last: where both overlap, to must lie before from. There may be no string.h. */
static inline void copy(unsigned char *to, const unsigned char *from, size_t count) {
  for (size_t i = 0; i < count; i++) to[i] = from[i];
}

static inline uint32_t byte_or_zero(Bytes *bytes) { return bytes->at < bytes->end ? *bytes->at++ : 0u; }

static inline Bytes take(Bytes *bytes, size_t count) {
  Bytes part = {bytes->at, bytes->at, 0};
  if (count > left(bytes)) {
    bytes->is_cut = part.is_cut = 1;
    count = left(bytes);
  }
  bytes->at += count;
  part.end = bytes->at;
  return part;
}

/* Seven bits a byte, the lowest first. A number above most counts as cut off and reads as 0. */
static inline size_t number(Bytes *bytes, size_t most) {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 35; shift += 7) {
    if (bytes->at == bytes->end) break;
    const unsigned byte = *bytes->at++;
    value |= (uint64_t)(byte & 0x7fu) << shift;
    if (byte < 0x80u) {
      if (value <= most) return (size_t)value;
      break;
    }
  }
  bytes->is_cut = 1;
  return 0;
}

typedef struct Range {
  Bytes bytes;
  uint32_t range, code;
} Range;

static inline Range start_range(Bytes bytes) {
  Range range = {bytes, 0xffffffffu, 0};
  for (int i = 0; i < 4; i++) range.code = range.code << 8 | byte_or_zero(&range.bytes);
  return range;
}

/* Whether the code lies below the bound. */
static inline unsigned is_below(Range *range, uint32_t bound) {
  const unsigned below = range->code < bound;
  if (below) {
    range->range = bound;
  } else {
    range->code -= bound;
    range->range -= bound;
  }
  while (range->range < 1u << 24) {
    range->range <<= 8;
    range->code = range->code << 8 | byte_or_zero(&range->bytes);
  }
  return below;
}

/* Returns the memory that a stream of LZMA needs, 0 if its first byte is not that of one. */
size_t edgeopt_lzma_work_bytes(unsigned first);

/* Decodes size bytes, which begin with the parameters; returns whether it could. */
int edgeopt_lzma_decode(Bytes stored, unsigned char *out, size_t size, void *work);

#endif
