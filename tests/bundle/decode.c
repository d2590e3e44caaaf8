/* Decodes each coded model of a file, one behind the other with its size before it in four bytes, the lowest first, in
 * memory of just the sizes that are asked for, so that AddressSanitizer sees every step outside. Prints for each what
 * edgeopt_decode returns, and writes the models to the second file. */
#include <stdio.h>
#include <stdlib.h>

#include "edgeopt_decode.h"

enum { MOST_BYTES = 1 << 22 };

static int decode(const unsigned char *coded, size_t coded_bytes, FILE *models) {
  const EdgeoptDecodeSizes sizes = edgeopt_decode_sizes(coded, coded_bytes);
  const size_t room = sizes.model_bytes, work_room = sizes.work_bytes;
  if (room > MOST_BYTES || work_room > MOST_BYTES) return -1; /* as firmware would say */
  unsigned char *model = malloc(room), *work = malloc(work_room);
  const int code = edgeopt_decode(coded, coded_bytes, model, room, work, work_room);
  if (code == EDGEOPT_DECODED) {
    fwrite(model, 1, room, models);
    if (edgeopt_decode(coded, coded_bytes, model, room - 1, work, work_room) != EDGEOPT_TOO_SMALL) exit(3);
    if (work_room > 0 && edgeopt_decode(coded, coded_bytes, model, room, work, work_room - 1) != EDGEOPT_TOO_SMALL) exit(3);
  }
  free(model);
  free(work);
  return code;
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  unsigned char size[4];
  FILE *file = fopen(arguments[1], "rb"), *models = fopen(arguments[2], "wb");
  if (file == NULL || models == NULL) return 2;
  while (fread(size, 1, sizeof size, file) == sizeof size) {
    const size_t bytes = size[0] | (size_t)size[1] << 8 | (size_t)size[2] << 16 | (size_t)size[3] << 24;
    unsigned char *coded = malloc(bytes);
    if (fread(coded, 1, bytes, file) != bytes) return 2;
    printf("%d\n", decode(coded, bytes, models));
    free(coded);
  }
  return fclose(models);
}
