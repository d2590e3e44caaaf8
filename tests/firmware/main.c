/* A firmware's own test run. Its "runtime" answers each golden sample with the answer that lies behind it, changed by
 * as many steps as the command line says; "nan" is for outputs in float. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiny_model.h"

static _Alignas(EDGEOPT_ALIGNMENT) unsigned char scratch[4096];

static int replay(void *context, const void *const *inputs, void *const *outputs) {
  const EdgeoptTensor *input = &tiny_model.inputs[0];
  const EdgeoptTensor *output = &tiny_model.outputs[0];
  const size_t padded = (edgeopt_tensor_bytes(input) + EDGEOPT_ALIGNMENT - 1) / EDGEOPT_ALIGNMENT * EDGEOPT_ALIGNMENT;
  const char *change = (const char *)context;
  if (strcmp(change, "broken") == 0) return 7;
  memcpy(outputs[0], (const unsigned char *)inputs[0] + padded, edgeopt_tensor_bytes(output));
  if (output->type == EDGEOPT_INT8) {
    signed char *values = (signed char *)outputs[0];
    values[1] = (signed char)(values[1] > 0 ? values[1] - atoi(change) : values[1] + atoi(change)); /* no wrap-around */
  } else if (strcmp(change, "nan") == 0) {
    ((float *)outputs[0])[1] = NAN;
  }
  return 0;
}

int main(int count, char **arguments) {
  EdgeoptResult result;
  char *change = count > 1 ? arguments[1] : (char *)"0";
  int verdict = edgeopt_self_test(&tiny_model, replay, change, scratch, sizeof scratch, &result);
  const int aligned = (size_t)tiny_model.data % EDGEOPT_ALIGNMENT == 0;
  printf("verdict %d, %u run, %g steps, run code %d, aligned %d, file %.4s, shape %d x %d x %d x %d, %u labels, %s, "
         "scale %.9g %d\n",
         verdict, (unsigned)result.num_run, (double)result.max_steps, result.run_code, aligned,
         (const char *)tiny_model.data + 4, (int)tiny_model.inputs[0].shape[0], (int)tiny_model.inputs[0].shape[1],
         (int)tiny_model.inputs[0].shape[2], (int)tiny_model.inputs[0].shape[3],
         (unsigned)tiny_model.outputs[0].num_labels, tiny_outputs_labels_0[1], (double)TINY_INPUT_0_SCALE,
         TINY_INPUT_0_ZERO_POINT);
  return verdict;
}
