#include "latency.h"

#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fail.h"

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static double time_one(Model *model) {
  const double start = now_ms();
  model_run(model);
  return now_ms() - start;
}

static int by_size(const void *left, const void *right) {
  const double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

static double percentile(const double *sorted, size_t count, size_t percent) {
  return sorted[(percent * count + 99) / 100 - 1];
}

static Times run_for(Model *model, double seconds, size_t min_runs) {
  const double end = now_ms() + 1e3 * seconds;
  double *times = NULL;
  size_t count = 0, capacity = 0;
  while (count < min_runs || now_ms() < end) {
    if (count == capacity) times = reallocate(times, capacity = 2 * capacity + 64, sizeof *times);
    times[count++] = time_one(model);
  }
  qsort(times, count, sizeof *times, by_size);
  const Times found = {percentile(times, count, 50), percentile(times, count, 90), percentile(times, count, 99), count};
  free(times);
  return found;
}

static long long peak_memory_bytes(void) {
  FILE *status = fopen("/proc/self/status", "r");
  char line[256];
  long long kilobytes = -1;
  while (status != NULL && fgets(line, sizeof line, status) != NULL) {
    if (sscanf(line, "VmHWM: %lld kB", &kilobytes) == 1) break;
  }
  if (status != NULL) fclose(status);
  return kilobytes < 0 ? -1 : kilobytes * 1024;
}

/* ---------------------------------------------------------------- what the kernel tells of heat */

typedef double (*Combine)(double, double);

static double add(double left, double right) { return left + right; }

static int read_number(const char *path, const char *format, void *number) {
  FILE *file = fopen(path, "r");
  const int found = file != NULL && fscanf(file, format, number) == 1;
  if (file != NULL) fclose(file);
  return found;
}

/* Combines the numbers of all files that a pattern names; NaN if there are none. */
static double read_all(const char *pattern, Combine combine) {
  glob_t paths;
  double combined = (double)NAN, number;
  if (glob(pattern, 0, NULL, &paths) != 0) return combined;
  for (size_t i = 0; i < paths.gl_pathc; i++) {
    if (!read_number(paths.gl_pathv[i], "%lf", &number)) continue; /* a sensor that is off cannot be read */
    combined = isnan(combined) ? number : combine(combined, number);
  }
  globfree(&paths);
  return combined;
}

static double throttle_count(void) {
  return read_all("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count", add);
}

/* What a Raspberry Pi's firmware says (bits 0 to 3 are of now), else whether Intel's counters went up.
 * Source: Raspberry Pi documentation, vcgencmd get_throttled. */
static int is_throttled(double count_before) {
  unsigned firmware;
  if (read_number("/sys/devices/platform/soc/soc:firmware/get_throttled", "%x", &firmware)) return (firmware & 15) != 0;
  const double count = throttle_count();
  return isnan(count) || isnan(count_before) ? -1 : count > count_before;
}

static Window run_window(Model *model, double seconds, int index) {
  const double throttlings = throttle_count();
  Window window = {.end_s = seconds * (index + 1) / NUM_WINDOWS, .times = run_for(model, seconds / NUM_WINDOWS, 1)};
  window.temperature_c = read_all("/sys/class/thermal/thermal_zone*/temp", fmax) / 1000;
  window.frequency_mhz = read_all("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", fmin) / 1000;
  window.throttled = is_throttled(throttlings);
  return window;
}

Latency latency_measure(Model *model, double seconds, double sustained_s) {
  enum { MIN_RUNS = 10 };
  Latency latency = {.first_ms = time_one(model), .is_sustained = sustained_s > 0};
  latency.times = run_for(model, seconds, MIN_RUNS);
  latency.peak_memory_bytes = peak_memory_bytes();
  for (int i = 0; latency.is_sustained && i < NUM_WINDOWS; i++) latency.windows[i] = run_window(model, sustained_s, i);
  return latency;
}
