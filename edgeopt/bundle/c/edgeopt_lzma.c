/* LZMA. Source: Pavlov, "LZMA specification", 2015. */
#include "edgeopt_stream.h"

enum { NUM_STATES = 12, NUM_POSITIONS = 16, LITERAL_PROBABILITIES = 0x300 };

typedef struct Lengths {
  uint16_t choices[2], low[NUM_POSITIONS][8], middle[NUM_POSITIONS][8], high[256];
} Lengths;

typedef struct Lzma {
  uint16_t is_match[NUM_STATES][NUM_POSITIONS], is_long[NUM_STATES][NUM_POSITIONS], repeats[4][NUM_STATES];
  uint16_t slots[4][64], distances[115], aligned[16];
  Lengths matches, repeated;
} Lzma;

/* Parameters of a stream: literals see the upper lc bits of the byte before, and lp bits of the place. */
typedef struct Parameters {
  unsigned lc, lp, pb;
} Parameters;

static Parameters parameters_of(unsigned byte) {
  const Parameters parameters = {byte % 9u, byte / 9u % 5u, byte / 45u};
  return parameters;
}

size_t edgeopt_lzma_work_bytes(unsigned first) {
  const Parameters parameters = parameters_of(first);
  if (parameters.pb > 4u || parameters.lc + parameters.lp > 4u) return 0;
  return sizeof(Lzma) + ((size_t)LITERAL_PROBABILITIES << (parameters.lc + parameters.lp)) * sizeof(uint16_t);
}

static unsigned bit(Range *range, uint16_t *probability) {
  const uint32_t p = *probability;
  const unsigned is_one = !is_below(range, (range->range >> 11) * p);
  *probability = (uint16_t)(is_one ? p - (p >> 5) : p + ((2048u - p) >> 5));
  return is_one;
}

static uint32_t bits(Range *range, uint16_t *tree, unsigned count) {
  uint32_t node = 1;
  for (unsigned i = 0; i < count; i++) node = node << 1 | bit(range, &tree[node]);
  return node - (1u << count);
}

static uint32_t reversed_bits(Range *range, uint16_t *tree, unsigned count) {
  uint32_t node = 1, value = 0;
  for (unsigned i = 0; i < count; i++) {
    const unsigned found = bit(range, &tree[node]);
    node = node << 1 | found;
    value |= (uint32_t)found << i;
  }
  return value;
}

static uint32_t even_bits(Range *range, unsigned count) {
  uint32_t value = 0;
  for (unsigned i = 0; i < count; i++) {
    range->range &= ~1u;
    value = value << 1 | !is_below(range, range->range >> 1);
  }
  return value;
}

static uint32_t match_length(Range *range, Lengths *lengths, unsigned position) {
  if (!bit(range, &lengths->choices[0])) return 2u + bits(range, lengths->low[position], 3);
  if (!bit(range, &lengths->choices[1])) return 10u + bits(range, lengths->middle[position], 3);
  return 18u + bits(range, lengths->high, 8);
}

static uint32_t match_distance(Range *range, Lzma *lzma, uint32_t length) {
  const uint32_t slot = bits(range, lzma->slots[length < 6u ? length - 2u : 3u], 6);
  if (slot < 4u) return slot;
  const unsigned count = slot / 2u - 1u;
  const uint32_t upper = (2u | (slot & 1u)) << count;
  if (slot < 14u) return upper + reversed_bits(range, lzma->distances + upper - slot, count);
  return upper + (even_bits(range, count - 4u) << 4) + reversed_bits(range, lzma->aligned, 4);
}

static unsigned char literal(Range *range, uint16_t *tree, int is_after_match, uint32_t match) {
  uint32_t node = 1;
  while (is_after_match && node < 0x100u) {
    const uint32_t expected = match >> 7 & 1u;
    match <<= 1;
    const unsigned found = bit(range, &tree[((1u + expected) << 8) + node]);
    node = node << 1 | found;
    if (found != expected) break;
  }
  while (node < 0x100u) node = node << 1 | bit(range, &tree[node]);
  return (unsigned char)node;
}

/* Puts a distance before the first count of the others. */
static void to_front(uint32_t recent[4], unsigned count, uint32_t distance) {
  for (unsigned i = count; i > 0; i--) recent[i] = recent[i - 1u];
  recent[0] = distance;
}

/* Returns the length of what is repeated, from recent[0] + 1 bytes before; the last four distances are kept. */
static uint32_t match(Range *range, Lzma *lzma, unsigned *state, uint32_t recent[4], unsigned position) {
  const unsigned before = *state, is_after_literal = before < 7u;
  if (!bit(range, &lzma->repeats[0][before])) {
    const uint32_t length = match_length(range, &lzma->matches, position);
    to_front(recent, 3, match_distance(range, lzma, length));
    *state = is_after_literal ? 7u : 10u;
    return length;
  }
  unsigned which = 0;
  while (which < 3u && bit(range, &lzma->repeats[which + 1u][before])) which++;
  if (which == 0u && !bit(range, &lzma->is_long[before][position])) {
    *state = is_after_literal ? 9u : 11u;
    return 1;
  }
  to_front(recent, which, recent[which]);
  *state = is_after_literal ? 8u : 11u;
  return match_length(range, &lzma->repeated, position);
}

int edgeopt_lzma_decode(Bytes stored, unsigned char *out, size_t size, void *work) {
  const unsigned first = byte_or_zero(&stored);
  const Parameters parameters = parameters_of(first);
  Lzma *lzma = (Lzma *)work;
  uint16_t *probabilities = (uint16_t *)work, *literals = (uint16_t *)(lzma + 1);
  uint32_t recent[4] = {0, 0, 0, 0};
  unsigned state = 0;
  for (size_t i = 0; i < edgeopt_lzma_work_bytes(first) / sizeof *probabilities; i++) probabilities[i] = 1024;
  if (byte_or_zero(&stored) != 0) return 0; /* as the encoder leaves it */
  Range range = start_range(stored);
  for (size_t at = 0; at < size;) {
    const unsigned position = (unsigned)at & ((1u << parameters.pb) - 1u);
    if (!bit(&range, &lzma->is_match[state][position])) {
      const size_t before = at > 0 ? out[at - 1] : 0u;
      const size_t context = (at & ((1u << parameters.lp) - 1u)) << parameters.lc | before >> (8u - parameters.lc);
      const int is_after_match = state >= 7u;
      const uint32_t expected = is_after_match ? out[at - recent[0] - 1u] : 0u;
      out[at++] = literal(&range, literals + LITERAL_PROBABILITIES * context, is_after_match, expected);
      state = state < 4u ? 0u : state < 10u ? state - 3u : state - 6u;
    } else {
      size_t length = match(&range, lzma, &state, recent, position);
      if (recent[0] >= at || length > size - at) return 0;
      for (; length > 0; length--, at++) out[at] = out[at - recent[0] - 1u];
    }
  }
  return 1;
}
