/* A model in LiteRT's C API, found in libLiteRt.so when the program runs.
 *
 * The library comes out of the ai-edge-litert wheel, which has no headers: the few declarations in litert.c are written
 * after LiteRT's public ones, github.com/google-ai-edge/LiteRT, litert/c (Apache-2.0), releases 2.2 and 2.3. */
#ifndef LITERT_H
#define LITERT_H

#include <stddef.h>

#include "npz.h"

typedef struct Model Model;

/* Loads the library that lies beside the program or where the system looks, and the model, for XNNPACK's kernels. */
Model *model_open(const char *path, int threads);

/* The model's tensors by name, one sample each; NULL if it has none of this name. Inputs are filled before
 * model_run, outputs are read behind it. */
Array *model_input(Model *model, const char *name);
Array *model_output(Model *model, const char *name);

void model_run(Model *model);

/* Where the memory of an input is. */
unsigned char *model_input_data(Model *model, const Array *input);

/* What computes: "XNNPACK", or XNNPACK and LiteRT's built-in kernels. */
const char *model_kernels(const Model *model);

/* The library's name and the first twelve digits of its SHA-256: it does not tell its version. */
const char *model_runtime(const Model *model);

#endif
