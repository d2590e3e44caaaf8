#include "edgeopt.h"

static const size_t edgeopt_sizes[] = {1, 1, 1, 2, 4, 8, 4}; /* in the order of EdgeoptType */

static size_t edgeopt_padded(size_t bytes) {
  return (bytes + EDGEOPT_ALIGNMENT - 1u) / EDGEOPT_ALIGNMENT * EDGEOPT_ALIGNMENT;
}

size_t edgeopt_tensor_bytes(const EdgeoptTensor *tensor) {
  return edgeopt_sizes[tensor->type] * (size_t)tensor->num_elements;
}

size_t edgeopt_scratch_bytes(const EdgeoptModel *model) {
  size_t total = 0;
  for (uint32_t i = 0; i < model->num_outputs; i++) total += edgeopt_padded(edgeopt_tensor_bytes(&model->outputs[i]));
  return total;
}

static double edgeopt_element(const EdgeoptTensor *tensor, const void *values, uint32_t index) {
  switch (tensor->type) {
    case EDGEOPT_BOOL:
    case EDGEOPT_UINT8: return ((const uint8_t *)values)[index];
    case EDGEOPT_INT8: return ((const int8_t *)values)[index];
    case EDGEOPT_INT16: return ((const int16_t *)values)[index];
    case EDGEOPT_INT32: return ((const int32_t *)values)[index];
    case EDGEOPT_INT64: return (double)((const int64_t *)values)[index];
    case EDGEOPT_FLOAT32: break;
  }
  return (double)((const float *)values)[index] / (tensor->scale > 0.0f ? (double)tensor->scale : 1.0);
}

/* The worst difference in steps; a NaN is worse than every number and comes back as -1. */
static double edgeopt_worst(const EdgeoptTensor *tensor, const void *actual, const void *expected) {
  double worst = 0.0;
  for (uint32_t i = 0; i < tensor->num_elements; i++) {
    double difference = edgeopt_element(tensor, actual, i) - edgeopt_element(tensor, expected, i);
    if (difference < 0.0) difference = -difference;
    if (!(difference >= 0.0)) return -1.0;
    if (difference > worst) worst = difference;
  }
  return worst;
}

static void edgeopt_note(EdgeoptResult *result, double steps, uint32_t sample, uint32_t output) {
  if (result->max_steps < 0.0f || (steps >= 0.0 && steps <= (double)result->max_steps)) return;
  result->max_steps = (float)steps;
  result->worst_sample = sample;
  result->worst_output = output;
}

int edgeopt_self_test(const EdgeoptModel *model, EdgeoptRun run, void *context, void *scratch, size_t scratch_bytes,
                      EdgeoptResult *result) {
  const void *inputs[EDGEOPT_MAX_TENSORS];
  void *outputs[EDGEOPT_MAX_TENSORS];
  const unsigned char *golden = model->golden;
  const EdgeoptResult nothing = {0, 0.0f, 0, 0, 0};
  *result = nothing;
  if (model->num_golden == 0 || scratch_bytes < edgeopt_scratch_bytes(model)) return EDGEOPT_NOT_RUN;
  if (model->num_inputs > EDGEOPT_MAX_TENSORS || model->num_outputs > EDGEOPT_MAX_TENSORS) return EDGEOPT_NOT_RUN;
  for (uint32_t sample = 0; sample < model->num_golden; sample++) {
    unsigned char *room = (unsigned char *)scratch;
    for (uint32_t i = 0; i < model->num_inputs; i++) {
      inputs[i] = golden;
      golden += edgeopt_padded(edgeopt_tensor_bytes(&model->inputs[i]));
    }
    for (uint32_t i = 0; i < model->num_outputs; i++) {
      outputs[i] = room;
      room += edgeopt_padded(edgeopt_tensor_bytes(&model->outputs[i]));
    }
    result->run_code = run(context, inputs, outputs);
    if (result->run_code != 0) return EDGEOPT_NOT_RUN;
    for (uint32_t i = 0; i < model->num_outputs; i++) {
      edgeopt_note(result, edgeopt_worst(&model->outputs[i], outputs[i], golden), sample, i);
      golden += edgeopt_padded(edgeopt_tensor_bytes(&model->outputs[i]));
    }
    result->num_run = sample + 1u;
  }
  return result->max_steps >= 0.0f && result->max_steps <= model->max_steps ? EDGEOPT_PASSED : EDGEOPT_FAILED;
}
