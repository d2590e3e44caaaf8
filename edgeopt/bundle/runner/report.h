/* The report: as the JSON that run_parity.py writes, and as lines for a person. */
#ifndef REPORT_H
#define REPORT_H

#include "bundle.h"
#include "judge.h"
#include "latency.h"
#include "litert.h"
#include "text.h"

typedef struct Report {
  const Bundle *bundle;
  const Model *model;
  const Verdict *verdict;
  const Latency *latency; /* NULL if it was not measured */
  int threads;
} Report;

void report_json(Text *text, const Report *report);
void report_lines(Text *text, const Report *report);

#endif
