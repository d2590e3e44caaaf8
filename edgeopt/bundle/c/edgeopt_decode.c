/* The form of the file is told in edgeopt/bundle/coding.py, that of tensors in coding_forms.py and range_coding.py. */
#include "edgeopt_decode.h"

#include "edgeopt_stream.h"

enum { FORM_RAW, FORM_LZMA, FORM_HUFFMAN, FORM_SPARSE, FORM_RANGE, FORM_BLOCKS, NUM_FORMS };
enum { MAX_VALUES = 4096, MAX_GAPS = 256, MAX_CODE_BITS = 15 };
enum { MAX_SPARSE_ITEMS = 1 << 26 }; /* a few bytes may stand for so many; their work fits 32 bits */

/* ---------------------------------------------------------------- codebooks */

/* The different values of a tensor; those of all 256 bytes are not listed. */
typedef struct Codebook {
  const unsigned char *values;
  size_t item_bytes, num_values;
} Codebook;

static Codebook read_codebook(Bytes *stored, size_t size) {
  Codebook codebook = {NULL, number(stored, 8), 0};
  const size_t item = codebook.item_bytes;
  if ((item != 1 && item != 2 && item != 4 && item != 8) || size % item != 0) stored->is_cut = 1;
  codebook.num_values = number(stored, MAX_VALUES);
  if (codebook.num_values == 0) stored->is_cut = 1;
  if (item != 1 || codebook.num_values != 256) codebook.values = take(stored, item * codebook.num_values).at;
  return codebook;
}

static void put(const Codebook *codebook, unsigned char *out, size_t index, size_t rank) {
  if (codebook->values == NULL) {
    out[index] = (unsigned char)(rank ^ 0x80u);
  } else {
    copy(out + index * codebook->item_bytes, codebook->values + rank * codebook->item_bytes, codebook->item_bytes);
  }
}

/* ---------------------------------------------------------------- Huffman codes */

/* counts[n] codes have n bits; symbols are in the order of their codes. */
typedef struct Code {
  uint16_t counts[MAX_CODE_BITS + 1];
  uint16_t *symbols;
  Bytes bytes;
  unsigned ahead, num_ahead;
} Code;

static unsigned length_of(Bytes lengths, size_t symbol) {
  return symbol % 2 == 0 ? lengths.at[symbol / 2] >> 4 : lengths.at[symbol / 2] & 15u;
}

/* Reads lengths; stored is then at the stream of codes. */
static Code read_code(Bytes *stored, size_t num_symbols, uint16_t *symbols) {
  Code code = {{0}, symbols, {NULL, NULL, 0}, 0, 0};
  const Bytes lengths = take(stored, (num_symbols + 1) / 2);
  if (lengths.is_cut) return code;
  for (unsigned length = 1; length <= MAX_CODE_BITS; length++) {
    for (size_t symbol = 0; symbol < num_symbols; symbol++) {
      if (length_of(lengths, symbol) != length) continue;
      code.counts[length]++;
      *symbols++ = (uint16_t)symbol;
    }
  }
  return code;
}

/* Codes of one length follow each other, and the shorter ones come first. Returns UINT32_MAX where there is no code. */
static uint32_t next_symbol(Code *code) {
  uint32_t found = 0, first = 0, index = 0;
  for (unsigned length = 1; length <= MAX_CODE_BITS; length++) {
    if (code->num_ahead == 0) {
      if (left(&code->bytes) == 0) return UINT32_MAX;
      code->ahead = *code->bytes.at++;
      code->num_ahead = 8;
    }
    found |= code->ahead >> --code->num_ahead & 1u;
    const uint32_t count = code->counts[length];
    if (found < first + count) return found < first ? UINT32_MAX : code->symbols[index + found - first];
    index += count;
    first = (first + count) << 1;
    found <<= 1;
  }
  return UINT32_MAX;
}

static int decode_huffman(Bytes stored, unsigned char *out, size_t size, uint16_t *work) {
  const Codebook codebook = read_codebook(&stored, size);
  Code code = read_code(&stored, codebook.num_values, work);
  code.bytes = stored;
  for (size_t i = 0; i < size / codebook.item_bytes; i++) {
    const uint32_t rank = next_symbol(&code);
    if (rank == UINT32_MAX) return 0;
    put(&codebook, out, i, rank);
  }
  return 1;
}

static int decode_sparse(Bytes stored, unsigned char *out, size_t size, uint16_t *work) {
  const Codebook codebook = read_codebook(&stored, size);
  const size_t count = size / codebook.item_bytes, common = number(&stored, codebook.num_values - 1);
  const size_t num_entries = number(&stored, count), num_gaps = number(&stored, MAX_GAPS);
  const size_t gap_bytes = number(&stored, left(&stored));
  Code gaps = read_code(&stored, num_gaps, work);
  gaps.bytes = take(&stored, gap_bytes);
  Code values = read_code(&stored, codebook.num_values, work + MAX_GAPS);
  values.bytes = stored;
  if (stored.is_cut || count > MAX_SPARSE_ITEMS) return 0;
  for (size_t i = 0; i < count; i++) put(&codebook, out, i, common);
  size_t at = 0;
  for (size_t i = 0; i < num_entries; i++, at++) {
    const uint32_t gap = next_symbol(&gaps), rank = next_symbol(&values);
    if (gap == UINT32_MAX || rank == UINT32_MAX || gap >= count - at) return 0;
    at += gap;
    put(&codebook, out, at, rank);
  }
  return 1;
}

/* ---------------------------------------------------------------- blocks of 4 bits */

enum { MAX_NUMBER = 7, NUM_NUMBERS = 2 * MAX_NUMBER + 1, NUM_FACTORS = 19 };

static int decode_blocks(Bytes stored, unsigned char *out, size_t size, uint16_t *work) {
  const size_t width = number(&stored, size), block = number(&stored, width);
  const size_t factor_bytes = number(&stored, left(&stored));
  Code factors = read_code(&stored, NUM_FACTORS, work);
  factors.bytes = take(&stored, factor_bytes);
  Code numbers = read_code(&stored, NUM_NUMBERS, work + NUM_FACTORS);
  numbers.bytes = stored;
  if (stored.is_cut || block == 0 || size % width != 0) return 0;
  uint32_t factor = 0;
  for (size_t i = 0; i < size; i++) {
    if (i % width % block == 0) factor = next_symbol(&factors);
    const uint32_t found = next_symbol(&numbers);
    if (factor == UINT32_MAX || found == UINT32_MAX) return 0;
    out[i] = (unsigned char)((int)factor * ((int)found - MAX_NUMBER));
  }
  return 1;
}

/* ---------------------------------------------------------------- range-coded weights */

enum { NUM_FLAGS = 66, SEEN_BITS = 10, MAX_SEEN = 1023 };
static const uint32_t certain = 1u << 22, full = 1u << 16; /* a probability and a density of 1 */

static unsigned depth_of(size_t num_values) {
  unsigned depth = 0;
  while (num_values > 2 && (num_values - 2) >> depth > 0) depth++;
  return depth;
}

/* Decodes a bit and learns from it: a context is a probability of 22 bits, and the number of bits seen, plus 2. */
static unsigned weight_bit(Range *range, uint32_t *context) {
  uint32_t probability = *context >> SEEN_BITS;
  const uint32_t seen = *context & MAX_SEEN;
  const unsigned is_one = is_below(range, (range->range >> 15) * (probability >> 7));
  if (is_one) {
    probability += (certain - probability) / seen;
  } else {
    probability -= probability / seen;
  }
  *context = probability << SEEN_BITS | (seen < MAX_SEEN ? seen + 1u : seen);
  return is_one;
}

/* The level of a density: two for each octave. */
static unsigned level_of(uint64_t density) {
  if (density >= full) density = full - 1u;
  unsigned level = 0;
  for (uint64_t square = density * density; square > 0; square >>= 1) level++;
  return level;
}

typedef struct RangeHeader {
  size_t common, width;
  uint32_t density;
} RangeHeader;

static RangeHeader read_range_header(Bytes *stored, const Codebook *codebook, size_t size) {
  RangeHeader header;
  header.common = number(stored, codebook->num_values - 1);
  header.width = number(stored, size / codebook->item_bytes);
  header.density = (uint32_t)number(stored, full);
  if (header.width == 0 || size / codebook->item_bytes > MAX_SPARSE_ITEMS) stored->is_cut = 1;
  return header;
}

static int decode_range(Bytes stored, unsigned char *out, size_t size, uint32_t *work) {
  const Codebook codebook = read_codebook(&stored, size);
  const RangeHeader header = read_range_header(&stored, &codebook, size);
  const size_t count = size / codebook.item_bytes;
  const unsigned depth = depth_of(codebook.num_values);
  uint32_t *flags = work, *trees = flags + NUM_FLAGS, *columns = trees + ((size_t)2 << depth);
  for (uint32_t *context = flags; context < columns; context++) *context = certain / 2u << SEEN_BITS | 2u;
  for (size_t column = 0; column < header.width; column++) columns[column] = 0;
  Range range = start_range(stored);
  unsigned is_above = 0;
  for (size_t row = 0, at = 0; at < count; row++) {
    uint64_t expected = 2u * full, found = 2;
    unsigned is_other = 0;
    for (size_t column = 0; column < header.width && at < count; column++, at++) {
      const uint64_t rate = ((uint64_t)columns[column] * full + 2u * header.density) / (row + 2u);
      is_other = weight_bit(&range, &flags[2u * level_of(rate * found * full / expected) + is_other]);
      expected += rate;
      size_t rank = header.common;
      if (is_other) {
        uint32_t node = 1;
        uint32_t *tree = trees + ((size_t)is_above << depth);
        for (unsigned i = 0; i < depth; i++) node = node << 1 | weight_bit(&range, &tree[node]);
        is_above = node - (1u << depth) >= header.common;
        rank = node - (1u << depth) + is_above;
        if (rank >= codebook.num_values) return 0;
        columns[column]++;
        found++;
      }
      put(&codebook, out, at, rank);
    }
  }
  return 1;
}

/* ---------------------------------------------------------------- the file */

/* A tensor, or the rest of the file: how much of the file lies before it, its bytes, and how they are stored. */
typedef struct Part {
  size_t before, size, coded;
  unsigned form;
} Part;

typedef struct File {
  uint32_t checksum;
  size_t model_bytes, num_tensors;
  Bytes table, bodies;
  Part rest;
} File;

static Part read_tensor(Bytes *table) {
  Part part;
  part.before = number(table, INT32_MAX);
  part.size = number(table, INT32_MAX);
  part.coded = number(table, INT32_MAX);
  part.form = (unsigned)number(table, NUM_FORMS - 1);
  return part;
}

static uint32_t four_bytes(Bytes *bytes) {
  uint32_t value = 0;
  for (unsigned shift = 0; shift < 32; shift += 8) value |= byte_or_zero(bytes) << shift;
  return value;
}

static File read_file(Bytes coded) {
  static const uint32_t magic = 0x31434f45u; /* "EOC1" */
  File file;
  if (four_bytes(&coded) != magic) coded.is_cut = 1;
  file.checksum = four_bytes(&coded);
  file.model_bytes = number(&coded, INT32_MAX);
  file.num_tensors = number(&coded, UINT16_MAX);
  file.table = coded;
  file.rest.before = 0;
  file.rest.size = file.model_bytes;
  size_t ahead = file.model_bytes;
  for (size_t i = 0; i < file.num_tensors && !coded.is_cut; i++) {
    const Part tensor = read_tensor(&coded);
    if (tensor.before > ahead || tensor.size > ahead - tensor.before) coded.is_cut = 1;
    ahead -= coded.is_cut ? 0 : tensor.before + tensor.size;
    file.rest.size -= coded.is_cut ? 0 : tensor.size;
  }
  file.rest.coded = number(&coded, INT32_MAX);
  file.rest.form = (unsigned)number(&coded, FORM_LZMA);
  file.bodies = coded;
  return file;
}

/* The memory in which a part is decoded; SIZE_MAX for one that is damaged. */
static size_t work_of(const Part *part, Bytes stored) {
  if (stored.is_cut) return SIZE_MAX;
  if (part->form == FORM_RAW) return part->coded == part->size ? 0 : SIZE_MAX;
  if (part->form == FORM_LZMA) {
    const size_t lzma = left(&stored) > 0 ? edgeopt_lzma_work_bytes(*stored.at) : 0;
    return lzma > 0 ? lzma : SIZE_MAX;
  }
  if (part->form == FORM_BLOCKS) return (NUM_FACTORS + NUM_NUMBERS) * sizeof(uint16_t);
  const Codebook codebook = read_codebook(&stored, part->size);
  if (stored.is_cut) return SIZE_MAX;
  if (part->form != FORM_RANGE) return (MAX_GAPS + codebook.num_values) * sizeof(uint16_t);
  const RangeHeader header = read_range_header(&stored, &codebook, part->size);
  if (stored.is_cut) return SIZE_MAX;
  return (NUM_FLAGS + ((size_t)2 << depth_of(codebook.num_values)) + header.width) * sizeof(uint32_t);
}

static size_t work_of_file(const File *file) {
  Bytes table = file->table, bodies = file->bodies;
  size_t most = work_of(&file->rest, take(&bodies, file->rest.coded));
  for (size_t i = 0; i < file->num_tensors; i++) {
    const Part tensor = read_tensor(&table);
    const size_t work = work_of(&tensor, take(&bodies, tensor.coded));
    if (work > most) most = work;
  }
  return most;
}

static int decode_part(const Part *part, Bytes stored, unsigned char *out, void *work) {
  switch (part->form) {
    case FORM_LZMA: return edgeopt_lzma_decode(stored, out, part->size, work);
    case FORM_HUFFMAN: return decode_huffman(stored, out, part->size, (uint16_t *)work);
    case FORM_SPARSE: return decode_sparse(stored, out, part->size, (uint16_t *)work);
    case FORM_BLOCKS: return decode_blocks(stored, out, part->size, (uint16_t *)work);
    case FORM_RANGE: return decode_range(stored, out, part->size, (uint32_t *)work);
    default: copy(out, stored.at, part->size); return 1;
  }
}

/* CRC-32 as in zlib. */
static uint32_t checksum_of(const unsigned char *data, size_t size) {
  uint32_t sum = UINT32_MAX;
  for (size_t i = 0; i < size; i++) {
    sum ^= data[i];
    for (int j = 0; j < 8; j++) sum = sum >> 1 ^ (0xedb88320u & (0u - (sum & 1u)));
  }
  return ~sum;
}

EdgeoptDecodeSizes edgeopt_decode_sizes(const unsigned char *coded, size_t coded_bytes) {
  const Bytes bytes = {coded, coded + coded_bytes, 0};
  const File file = read_file(bytes);
  EdgeoptDecodeSizes sizes = {0, 0};
  const size_t work = file.bodies.is_cut ? SIZE_MAX : work_of_file(&file);
  if (work == SIZE_MAX) return sizes;
  sizes.model_bytes = file.model_bytes;
  sizes.work_bytes = work;
  return sizes;
}

int edgeopt_decode(const unsigned char *coded, size_t coded_bytes, unsigned char *model, size_t model_bytes, void *work,
                   size_t work_bytes) {
  const EdgeoptDecodeSizes sizes = edgeopt_decode_sizes(coded, coded_bytes);
  if (sizes.model_bytes == 0) return EDGEOPT_NOT_CODED;
  if (model_bytes < sizes.model_bytes || work_bytes < sizes.work_bytes) return EDGEOPT_TOO_SMALL;
  const Bytes bytes = {coded, coded + coded_bytes, 0};
  const File file = read_file(bytes);
  Bytes table = file.table, bodies = file.bodies;
  /* The rest comes to the end of the model's memory; its pieces then move to the front, each before what follows it. */
  unsigned char *out = model, *rest = model + file.model_bytes - file.rest.size;
  if (!decode_part(&file.rest, take(&bodies, file.rest.coded), rest, work)) return EDGEOPT_DAMAGED;
  for (size_t i = 0; i < file.num_tensors; i++) {
    const Part tensor = read_tensor(&table);
    copy(out, rest, tensor.before);
    out += tensor.before;
    rest += tensor.before;
    if (!decode_part(&tensor, take(&bodies, tensor.coded), out, work)) return EDGEOPT_DAMAGED;
    out += tensor.size;
  }
  return checksum_of(model, file.model_bytes) == file.checksum ? EDGEOPT_DECODED : EDGEOPT_DAMAGED;
}
