#include "litert.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "sha256.h"

static const char library_name[] = "libLiteRt.so";

/* ---------------------------------------------------------------- LiteRT's declarations */

typedef struct LiteRtEnvironmentT *LiteRtEnvironment;
typedef struct LiteRtModelT *LiteRtModel;
typedef struct LiteRtOptionsT *LiteRtOptions;
typedef struct LiteRtOpaqueOptionsT *LiteRtOpaqueOptions;
typedef struct LiteRtCompiledModelT *LiteRtCompiledModel;
typedef struct LiteRtSignatureT *LiteRtSignature;
typedef struct LiteRtTensorT *LiteRtTensor;
typedef struct LiteRtTensorBufferT *LiteRtTensorBuffer;
typedef struct LiteRtTensorBufferRequirementsT *LiteRtTensorBufferRequirements;
typedef int LiteRtStatus; /* 0 is success */

enum { ACCELERATOR_CPU = 1, LOCK_READ = 0, LOCK_WRITE = 1 };
enum { OPTION_ACCELERATORS = 24, OPTION_LOG_SEVERITY = 25, ANY_INT = 2, SEVERITY_ERROR = 3 };

typedef struct LiteRtEnvOption {
  int tag;
  struct {
    int type;
    union {
      int64_t int_value;
      const void *ptr_value;
    } value;
  } any;
} LiteRtEnvOption;

typedef struct LiteRtRankedTensorType {
  int element_type;
  struct {
    unsigned int rank : 7;
    bool has_strides : 1;
    int32_t dimensions[MAX_RANK];
    uint32_t strides[MAX_RANK];
  } layout;
} LiteRtRankedTensorType;

_Static_assert(sizeof(LiteRtRankedTensorType) == 72, "as LiteRT's header asserts it");
_Static_assert(sizeof(LiteRtEnvOption) == 24, "as LiteRT's header asserts it");

#define FUNCTIONS(F)                                                                                                  \
  F(LiteRtCreateEnvironment, (int, const LiteRtEnvOption *, LiteRtEnvironment *))                                     \
  F(LiteRtCreateModelFromFile, (LiteRtEnvironment, const char *, LiteRtModel *))                                      \
  F(LiteRtCreateOptions, (LiteRtOptions *))                                                                           \
  F(LiteRtSetOptionsHardwareAccelerators, (LiteRtOptions, int))                                                       \
  F(LiteRtCreateOpaqueOptions, (const char *, void *, void (*)(void *), LiteRtOpaqueOptions *))                       \
  F(LiteRtAddOpaqueOptions, (LiteRtOptions, LiteRtOpaqueOptions))                                                     \
  F(LiteRtCreateCompiledModel, (LiteRtEnvironment, LiteRtModel, LiteRtOptions, LiteRtCompiledModel *))                \
  F(LiteRtCompiledModelIsFullyAccelerated, (LiteRtCompiledModel, bool *))                                             \
  F(LiteRtGetModelSignature, (LiteRtModel, size_t, LiteRtSignature *))                                                \
  F(LiteRtGetNumSignatureInputs, (LiteRtSignature, size_t *))                                                         \
  F(LiteRtGetSignatureInputName, (LiteRtSignature, size_t, const char **))                                            \
  F(LiteRtGetSignatureInputTensorByIndex, (LiteRtSignature, size_t, LiteRtTensor *))                                  \
  F(LiteRtGetNumSignatureOutputs, (LiteRtSignature, size_t *))                                                        \
  F(LiteRtGetSignatureOutputName, (LiteRtSignature, size_t, const char **))                                           \
  F(LiteRtGetSignatureOutputTensorByIndex, (LiteRtSignature, size_t, LiteRtTensor *))                                 \
  F(LiteRtGetRankedTensorType, (LiteRtTensor, LiteRtRankedTensorType *))                                              \
  F(LiteRtGetCompiledModelInputBufferRequirements,                                                                    \
    (LiteRtCompiledModel, size_t, size_t, LiteRtTensorBufferRequirements *))                                          \
  F(LiteRtGetCompiledModelOutputBufferRequirements,                                                                   \
    (LiteRtCompiledModel, size_t, size_t, LiteRtTensorBufferRequirements *))                                          \
  F(LiteRtCreateManagedTensorBufferFromRequirements,                                                                  \
    (LiteRtEnvironment, const LiteRtRankedTensorType *, LiteRtTensorBufferRequirements, LiteRtTensorBuffer *))        \
  F(LiteRtGetTensorBufferPackedSize, (LiteRtTensorBuffer, size_t *))                                                  \
  F(LiteRtLockTensorBuffer, (LiteRtTensorBuffer, void **, int))                                                       \
  F(LiteRtUnlockTensorBuffer, (LiteRtTensorBuffer))                                                                   \
  F(LiteRtRunCompiledModel,                                                                                           \
    (LiteRtCompiledModel, size_t, size_t, LiteRtTensorBuffer *, size_t, LiteRtTensorBuffer *))

#define MEMBER(name, arguments) LiteRtStatus(*name) arguments;
#define SYMBOL(name, arguments) {#name, offsetof(Api, name)},

typedef struct Api {
  FUNCTIONS(MEMBER)
} Api;

static const struct {
  const char *name;
  size_t offset;
} symbols[] = {FUNCTIONS(SYMBOL)};

/* Only since 2.2 a model is made in an environment: called as it is here, an older library would misread the call. */
static const char since_2_2[] = "kLiteRtRuntimeBuiltin";

/* ---------------------------------------------------------------- the model */

/* The inputs or the outputs: an array for its element type, size and memory, and LiteRT's buffer, of each. */
typedef struct Side {
  size_t count;
  Array *arrays;
  unsigned char **memory;
  LiteRtTensorBuffer *buffers;
} Side;

struct Model {
  Api api;
  char runtime[sizeof library_name + 13];
  LiteRtEnvironment environment;
  LiteRtModel file;
  LiteRtCompiledModel compiled;
  LiteRtSignature signature;
  Side inputs, outputs;
  bool is_all_xnnpack;
};

static void check(LiteRtStatus status, const char *what) {
  if (status != 0) fail(EXIT_NO_RUNTIME, "%s cannot %s: status %d", library_name, what, status);
}

static void load_library(Model *model) {
  void *library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fail(EXIT_NO_RUNTIME, "no LiteRT: %s", dlerror());
  void *marker = dlsym(library, since_2_2);
  if (marker == NULL) fail(EXIT_NO_RUNTIME, "%s is older than LiteRT 2.2", library_name);
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    void *symbol = dlsym(library, symbols[i].name);
    if (symbol == NULL) fail(EXIT_NO_RUNTIME, "%s has no %s: another release of LiteRT", library_name, symbols[i].name);
    memcpy((char *)&model->api + symbols[i].offset, &symbol, sizeof symbol);
  }
  Dl_info found;
  Bytes content;
  char digest[65] = "unknown";
  if (dladdr(marker, &found) != 0 && read_file(found.dli_fname, &content) == 0) {
    sha256_hex(content.data, content.size, digest);
    free(content.data);
  }
  snprintf(model->runtime, sizeof model->runtime, "%s %.12s", library_name, digest);
}

static void compile(Model *model, const char *path, int threads) {
  const Api *api = &model->api;
  /* Without the first, LiteRT looks for accelerators' libraries; the one for WebGPU ends with SIGILL on old ARM CPUs. */
  const LiteRtEnvOption options[] = {
      {OPTION_ACCELERATORS, {ANY_INT, {ACCELERATOR_CPU}}},
      {OPTION_LOG_SEVERITY, {ANY_INT, {SEVERITY_ERROR}}},
  };
  LiteRtOptions compilation;
  LiteRtOpaqueOptions cpu;
  enum { ROOM = 64 };
  char *payload = allocate(ROOM, 1); /* TOML, as litert/c/options/litert_cpu_options.cc writes it */
  snprintf(payload, ROOM, "num_threads = %d\nkernel_mode = \"xnnpack\"\n", threads);
  check(api->LiteRtCreateEnvironment(2, options, &model->environment), "start");
  check(api->LiteRtCreateModelFromFile(model->environment, path, &model->file), "read the model");
  check(api->LiteRtCreateOptions(&compilation), "make options");
  check(api->LiteRtSetOptionsHardwareAccelerators(compilation, ACCELERATOR_CPU), "choose the CPU");
  check(api->LiteRtCreateOpaqueOptions("xnnpack", payload, free, &cpu), "make options of the CPU");
  check(api->LiteRtAddOpaqueOptions(compilation, cpu), "choose XNNPACK");
  check(api->LiteRtCreateCompiledModel(model->environment, model->file, compilation, &model->compiled),
        "prepare the model");
  check(api->LiteRtCompiledModelIsFullyAccelerated(model->compiled, &model->is_all_xnnpack), "tell its kernels");
}

/* Source: LiteRtElementType in litert/c/litert_model_types.h. */
static void set_type(Array *array, const LiteRtRankedTensorType *type) {
  static const struct {
    int element_type;
    DType dtype;
    size_t bytes;
  } types[] = {{1, DTYPE_FLOAT, 4}, {2, DTYPE_INT, 4},  {3, DTYPE_UINT, 1},  {4, DTYPE_INT, 8},  {6, DTYPE_BOOL, 1},
               {7, DTYPE_INT, 2},   {9, DTYPE_INT, 1},  {11, DTYPE_FLOAT, 8}, {16, DTYPE_UINT, 4}, {17, DTYPE_UINT, 2}};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    if (types[i].element_type != type->element_type) continue;
    array->dtype = types[i].dtype;
    array->item_bytes = types[i].bytes;
    return;
  }
  fail(EXIT_NO_RUNTIME, "'%s' has an element type (%d) that this program does not read", array->name,
       type->element_type);
}

static void set_array(Model *model, Array *array, const char *name, LiteRtTensor tensor,
                      LiteRtRankedTensorType *type) {
  array->name = (char *)(uintptr_t)name; /* the model's, and not changed */
  check(model->api.LiteRtGetRankedTensorType(tensor, type), "tell a tensor's type");
  set_type(array, type);
  array->rank = type->layout.rank;
  array->num_items = 1;
  if (array->rank > MAX_RANK) fail(EXIT_NO_RUNTIME, "'%s' has %zu dimensions", name, array->rank);
  for (size_t i = 0; i < array->rank; i++) {
    if (type->layout.dimensions[i] < 1) fail(EXIT_NO_RUNTIME, "'%s' has a dimension that is not known", name);
    array->shape[i] = (size_t)type->layout.dimensions[i];
    array->num_items *= array->shape[i];
  }
}

static void make_room(Side *side, size_t count) {
  side->count = count;
  side->arrays = allocate(count, sizeof *side->arrays);
  side->memory = allocate(count, sizeof *side->memory);
  side->buffers = allocate(count, sizeof *side->buffers);
}

static void add_tensor(Model *model, Side *side, size_t i, const char *name, LiteRtTensor tensor,
                       LiteRtTensorBufferRequirements requirements) {
  LiteRtRankedTensorType type;
  size_t size;
  set_array(model, &side->arrays[i], name, tensor, &type);
  check(model->api.LiteRtCreateManagedTensorBufferFromRequirements(model->environment, &type, requirements,
                                                                   &side->buffers[i]),
        "make a buffer");
  check(model->api.LiteRtGetTensorBufferPackedSize(side->buffers[i], &size), "tell a buffer's size");
  if (size != side->arrays[i].num_items * side->arrays[i].item_bytes) {
    fail(EXIT_NO_RUNTIME, "'%s' has %zu bytes in %s, expected %zu", name, size, library_name,
         side->arrays[i].num_items * side->arrays[i].item_bytes);
  }
  side->memory[i] = allocate(size, 1);
  side->arrays[i].data = side->memory[i];
}

static void find_tensors(Model *model) {
  const Api *api = &model->api;
  LiteRtTensor tensor;
  LiteRtTensorBufferRequirements requirements;
  const char *name;
  size_t num_inputs, num_outputs;
  check(api->LiteRtGetModelSignature(model->file, 0, &model->signature), "find the model's signature");
  check(api->LiteRtGetNumSignatureInputs(model->signature, &num_inputs), "count the inputs");
  check(api->LiteRtGetNumSignatureOutputs(model->signature, &num_outputs), "count the outputs");
  make_room(&model->inputs, num_inputs);
  make_room(&model->outputs, num_outputs);
  for (size_t i = 0; i < num_inputs; i++) {
    check(api->LiteRtGetSignatureInputName(model->signature, i, &name), "name an input");
    check(api->LiteRtGetSignatureInputTensorByIndex(model->signature, i, &tensor), "find an input");
    check(api->LiteRtGetCompiledModelInputBufferRequirements(model->compiled, 0, i, &requirements), "size an input");
    add_tensor(model, &model->inputs, i, name, tensor, requirements);
  }
  for (size_t i = 0; i < num_outputs; i++) {
    check(api->LiteRtGetSignatureOutputName(model->signature, i, &name), "name an output");
    check(api->LiteRtGetSignatureOutputTensorByIndex(model->signature, i, &tensor), "find an output");
    check(api->LiteRtGetCompiledModelOutputBufferRequirements(model->compiled, 0, i, &requirements), "size an output");
    add_tensor(model, &model->outputs, i, name, tensor, requirements);
  }
}

Model *model_open(const char *path, int threads) {
  Model *model = allocate(1, sizeof *model);
  load_library(model);
  compile(model, path, threads);
  find_tensors(model);
  return model;
}

static Array *find(const Side *side, const char *name) {
  for (size_t i = 0; i < side->count; i++) {
    if (strcmp(side->arrays[i].name, name) == 0) return &side->arrays[i];
  }
  return NULL;
}

Array *model_input(Model *model, const char *name) { return find(&model->inputs, name); }

Array *model_output(Model *model, const char *name) { return find(&model->outputs, name); }

unsigned char *model_input_data(Model *model, const Array *input) { return model->inputs.memory[input - model->inputs.arrays]; }

static void copy(const Model *model, const Side *side, int mode) {
  for (size_t i = 0; i < side->count; i++) {
    const size_t size = side->arrays[i].num_items * side->arrays[i].item_bytes;
    void *address;
    check(model->api.LiteRtLockTensorBuffer(side->buffers[i], &address, mode), "lock a buffer");
    memcpy(mode == LOCK_WRITE ? address : side->memory[i], mode == LOCK_WRITE ? side->memory[i] : address, size);
    check(model->api.LiteRtUnlockTensorBuffer(side->buffers[i]), "unlock a buffer");
  }
}

void model_run(Model *model) {
  copy(model, &model->inputs, LOCK_WRITE);
  check(model->api.LiteRtRunCompiledModel(model->compiled, 0, model->inputs.count, model->inputs.buffers,
                                          model->outputs.count, model->outputs.buffers),
        "run the model");
  copy(model, &model->outputs, LOCK_READ);
}

const char *model_kernels(const Model *model) {
  return model->is_all_xnnpack ? "XNNPACK" : "XNNPACK, built-in for the operators that it does not take";
}

const char *model_runtime(const Model *model) { return model->runtime; }
