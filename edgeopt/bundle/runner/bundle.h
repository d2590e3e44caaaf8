/* A bundle on disk: bundle.json and the files whose hashes it states. */
#ifndef BUNDLE_H
#define BUNDLE_H

#include "json.h"
#include "npz.h"

typedef struct Bundle {
  const char *folder;
  const Json *manifest;
  const Json *inputs, *outputs, *limits;
  Npz golden;
  const Array *names;  /* (N,) text */
  const Array *labels; /* (N,) integers; NULL if the samples have none */
  size_t num_samples;
} Bundle;

/* Reads a bundle and checks every file of it; ends the program if one is missing or not the one that was built. */
Bundle bundle_read(const char *folder);

/* The golden array "PREFIX/NAME", which has one row for each sample. */
const Array *bundle_golden(const Bundle *bundle, const char *prefix, const char *name);

const char *bundle_sample_name(const Bundle *bundle, size_t sample);

#endif
