/* How long an inference takes, what memory the program takes, and whether it stays so when the device gets hot: the
 * figures of run_latency.py, measured as it does. */
#ifndef LATENCY_H
#define LATENCY_H

#include <stddef.h>

#include "litert.h"

/* Milliseconds; percentiles by nearest rank: each is a time that was measured. */
typedef struct Times {
  double p50, p90, p99;
  size_t runs;
} Times;

/* One window of a sustained run; NaN and -1 for what the kernel does not tell. */
typedef struct Window {
  double end_s;
  Times times;
  double temperature_c, frequency_mhz;
  int throttled;
} Window;

enum { NUM_WINDOWS = 10 };

typedef struct Latency {
  double first_ms;
  Times times;
  long long peak_memory_bytes; /* -1 if the kernel does not tell */
  int is_sustained;
  Window windows[NUM_WINDOWS];
} Latency;

/* Runs the model, which was not run before and has its inputs, for some seconds, and then in windows for sustained_s
 * if that is above 0. */
Latency latency_measure(Model *model, double seconds, double sustained_s);

#endif
