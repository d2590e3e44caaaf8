/* The two questions: device against the quantized reference, and against the float network; each by its worst sample. */
#ifndef JUDGE_H
#define JUDGE_H

#include "bundle.h"
#include "litert.h"

/* What run_parity.py reports of one output; NaN for what an answer of NaN makes of a figure. */
typedef struct OutputReport {
  const char *name;
  double max_steps, equal_fraction, sqnr_db, cosine;
  const char *worst_steps_sample, *worst_sample, *worst_cosine_sample;
  int is_class, has_labels;
  double top1_agreement, float_accuracy, accuracy;
} OutputReport;

typedef struct Verdict {
  OutputReport *outputs; /* as many as bundle.json has */
  char **failures;
  size_t num_failures;
} Verdict;

/* Fills the model's inputs with a golden sample. */
void feed(Model *model, const Bundle *bundle, size_t sample);

/* Runs every golden sample. */
Verdict judge(Model *model, const Bundle *bundle);

#endif
