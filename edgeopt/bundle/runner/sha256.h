/* SHA-256, FIPS 180-4. */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>

/* Writes the digest as 64 hexadecimal digits and a zero byte. */
void sha256_hex(const void *data, size_t size, char hex[65]);

#endif
