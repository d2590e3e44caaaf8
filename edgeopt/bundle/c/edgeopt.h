/* What a model takes and gives, and a test of it that a firmware's own test run can call. C11 or C++17; no malloc. */
#ifndef EDGEOPT_H
#define EDGEOPT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum EdgeoptType {
  EDGEOPT_BOOL,
  EDGEOPT_INT8,
  EDGEOPT_UINT8,
  EDGEOPT_INT16,
  EDGEOPT_INT32,
  EDGEOPT_INT64,
  EDGEOPT_FLOAT32
} EdgeoptType;

/* real = scale * (integer - zero_point); scale is 0 for a tensor that was never quantized. labels are the names of an
 * output's classes, or NULL. */
typedef struct EdgeoptTensor {
  const char *name;
  EdgeoptType type;
  uint32_t rank;
  const int32_t *shape;
  uint32_t num_elements;
  float scale;
  int32_t zero_point;
  const char *const *labels;
  uint32_t num_labels;
} EdgeoptTensor;

/* golden holds, for each sample, all inputs and then the expected outputs, each padded to EDGEOPT_ALIGNMENT bytes. */
typedef struct EdgeoptModel {
  const char *name;
  const unsigned char *data;
  size_t size_bytes;
  const EdgeoptTensor *inputs;
  uint32_t num_inputs;
  const EdgeoptTensor *outputs;
  uint32_t num_outputs;
  const unsigned char *golden;
  uint32_t num_golden;
  float max_steps;
} EdgeoptModel;

#define EDGEOPT_ALIGNMENT 16u
#define EDGEOPT_MAX_TENSORS 16u

/* Runs one inference from inputs[] to outputs[], in the model's order; returns 0, or what went wrong. */
typedef int (*EdgeoptRun)(void *context, const void *const *inputs, void *const *outputs);

typedef struct EdgeoptResult {
  uint32_t num_run;      /* samples that were run */
  float max_steps;       /* the worst difference from the expected answer, in steps of the output's scale */
  uint32_t worst_sample; /* where it was */
  uint32_t worst_output;
  int run_code; /* what EdgeoptRun returned, if not 0 */
} EdgeoptResult;

enum { EDGEOPT_PASSED = 0, EDGEOPT_FAILED = 1, EDGEOPT_NOT_RUN = 2 };

/* Bytes of one tensor, without padding. */
size_t edgeopt_tensor_bytes(const EdgeoptTensor *tensor);

/* Bytes of scratch memory that edgeopt_self_test needs for the outputs of one inference. */
size_t edgeopt_scratch_bytes(const EdgeoptModel *model);

/* Runs every golden sample and compares; scratch is aligned to EDGEOPT_ALIGNMENT. No sample is no pass. */
int edgeopt_self_test(const EdgeoptModel *model, EdgeoptRun run, void *context, void *scratch, size_t scratch_bytes,
                      EdgeoptResult *result);

#ifdef __cplusplus
}
#endif

#endif
