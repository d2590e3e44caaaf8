#include "report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

/* ---------------------------------------------------------------- where it ran */

static const char *machine_name(void) {
  static struct utsname facts;
  return uname(&facts) == 0 ? facts.machine : "unknown";
}

static void trim(char *text) {
  size_t length = strlen(text);
  while (length > 0 && strchr(" \t\n\r", text[length - 1]) != NULL) text[--length] = '\0';
  memmove(text, text + strspn(text, " \t"), length + 1 - strspn(text, " \t"));
}

/* What Linux calls this CPU; ARM cores have only a part number there. */
static const char *cpu_name(void) {
  static char model[256], part[256];
  char line[1024];
  FILE *cpuinfo = fopen("/proc/cpuinfo", "r");
  while (cpuinfo != NULL && fgets(line, sizeof line, cpuinfo) != NULL) {
    char *value = strchr(line, ':');
    if (value == NULL) continue;
    *value++ = '\0';
    trim(line);
    trim(value);
    if (strcmp(line, "model name") == 0) snprintf(model, sizeof model, "%.255s", value);
    if (strcmp(line, "CPU part") == 0) snprintf(part, sizeof part, "%.255s", value);
  }
  if (cpuinfo != NULL) fclose(cpuinfo);
  return model[0] != '\0' ? model : part[0] != '\0' ? part : "unknown";
}

/* ---------------------------------------------------------------- JSON */

/* A member's name and ": " behind the separator; indentation in steps of two. */
static void key(Text *text, int depth, const char *name, int is_first) {
  text_add(text, "%s\n%*s\"%s\": ", is_first ? "" : ",", 2 * depth, "", name);
}

static void number(Text *text, int depth, const char *name, double value, int is_first) {
  key(text, depth, name, is_first);
  text_json_number(text, value);
}

static void string(Text *text, int depth, const char *name, const char *value, int is_first) {
  key(text, depth, name, is_first);
  text_json_string(text, value);
}

static void boolean(Text *text, int depth, const char *name, int value, int is_first) {
  key(text, depth, name, is_first);
  text_add(text, "%s", value < 0 ? "null" : value ? "true" : "false");
}

static void output_json(Text *text, const OutputReport *output) {
  enum { DEPTH = 3 };
  if (output->has_labels) number(text, DEPTH, "accuracy", output->accuracy, 1);
  number(text, DEPTH, "cosine", output->cosine, !output->has_labels);
  number(text, DEPTH, "equal_fraction", output->equal_fraction, 0);
  if (output->has_labels) number(text, DEPTH, "float_accuracy", output->float_accuracy, 0);
  number(text, DEPTH, "max_steps", output->max_steps, 0);
  string(text, DEPTH, "name", output->name, 0);
  number(text, DEPTH, "sqnr_db", output->sqnr_db, 0);
  number(text, DEPTH, "top1_agreement", output->is_class ? output->top1_agreement : (double)NAN, 0);
  string(text, DEPTH, "worst_cosine_sample", output->worst_cosine_sample, 0);
  string(text, DEPTH, "worst_sample", output->worst_sample, 0);
  string(text, DEPTH, "worst_steps_sample", output->worst_steps_sample, 0);
}

static void latency_json(Text *text, const Latency *latency, int threads) {
  key(text, 1, "latency_ms", 0);
  text_add(text, "{");
  number(text, 2, "first", latency->first_ms, 1);
  number(text, 2, "p50", latency->times.p50, 0);
  number(text, 2, "p90", latency->times.p90, 0);
  number(text, 2, "p99", latency->times.p99, 0);
  number(text, 2, "runs", (double)latency->times.runs, 0);
  number(text, 2, "threads", threads, 0);
  text_add(text, "\n  }");
}

static void window_json(Text *text, const Window *window) {
  number(text, 3, "end_s", window->end_s, 1);
  number(text, 3, "frequency_mhz", window->frequency_mhz, 0);
  number(text, 3, "p50_ms", window->times.p50, 0);
  number(text, 3, "p90_ms", window->times.p90, 0);
  number(text, 3, "p99_ms", window->times.p99, 0);
  number(text, 3, "runs", (double)window->times.runs, 0);
  number(text, 3, "temperature_c", window->temperature_c, 0);
  boolean(text, 3, "throttled", window->throttled, 0);
}

static void sustained_json(Text *text, const Latency *latency) {
  key(text, 1, "sustained", 0);
  for (int i = 0; i < NUM_WINDOWS; i++) {
    text_add(text, i == 0 ? "[\n    {" : ",\n    {");
    window_json(text, &latency->windows[i]);
    text_add(text, "\n    }");
  }
  text_add(text, "\n  ]");
}

static void peak_memory_json(Text *text, const Latency *latency) {
  const long long bytes = latency->peak_memory_bytes;
  number(text, 1, "peak_memory_bytes", bytes < 0 ? (double)NAN : (double)bytes, 0);
  string(text, 1, "peak_memory_of", "the whole process: the golden vectors, the runtime and the model", 0);
}

static void failures_json(Text *text, const Verdict *verdict) {
  key(text, 1, "failures", 0);
  text_add(text, "[");
  for (size_t i = 0; i < verdict->num_failures; i++) {
    text_add(text, i == 0 ? "\n    " : ",\n    ");
    text_json_string(text, verdict->failures[i]);
  }
  text_add(text, verdict->num_failures > 0 ? "\n  ]" : "]");
}

static void outputs_json(Text *text, const Verdict *verdict, size_t count) {
  key(text, 1, "outputs", 0);
  for (size_t i = 0; i < count; i++) {
    text_add(text, i == 0 ? "[\n    {" : ",\n    {");
    output_json(text, &verdict->outputs[i]);
    text_add(text, "\n    }");
  }
  text_add(text, "\n  ]");
}

void report_json(Text *text, const Report *report) {
  const Json *manifest = report->bundle->manifest;
  const Latency *latency = report->latency;
  text_add(text, "{");
  string(text, 1, "cpu", cpu_name(), 1);
  string(text, 1, "digest", json_string(manifest, "digest"), 0);
  failures_json(text, report->verdict);
  number(text, 1, "integer_coverage", json_number(manifest, "integer_coverage"), 0);
  string(text, 1, "kernels", model_kernels(report->model), 0);
  if (latency != NULL) latency_json(text, latency, report->threads);
  string(text, 1, "machine", machine_name(), 0);
  string(text, 1, "name", json_string(manifest, "name"), 0);
  number(text, 1, "num_samples", (double)report->bundle->num_samples, 0);
  outputs_json(text, report->verdict, report->bundle->outputs->count);
  boolean(text, 1, "passed", report->verdict->num_failures == 0, 0);
  if (latency != NULL) peak_memory_json(text, latency);
  string(text, 1, "runtime", model_runtime(report->model), 0);
  boolean(text, 1, "steps_judged", 1, 0);
  if (latency != NULL && latency->is_sustained) sustained_json(text, latency);
  string(text, 1, "target", json_string(manifest, "target"), 0);
  number(text, 1, "threads", report->threads, 0);
  text_add(text, "\n}");
}

/* ---------------------------------------------------------------- lines */

static void output_lines(Text *text, const OutputReport *output) {
  text_add(text, "  %s: ", output->name);
  if (isnan(output->max_steps)) {
    text_add(text, "None");
  } else {
    text_add(text, "%.0f", output->max_steps);
  }
  text_add(text, " steps at most (%s), %.2f%% equal, ", output->worst_steps_sample, 100 * output->equal_fraction);
  if (isnan(output->sqnr_db)) {
    text_add(text, "NaN");
  } else {
    text_add(text, "%.1f dB at least", output->sqnr_db);
  }
  text_add(text, " (%s)\n", output->worst_sample);
}

void report_lines(Text *text, const Report *report) {
  const Json *manifest = report->bundle->manifest;
  const Verdict *verdict = report->verdict;
  const Latency *latency = report->latency;
  text_add(text, "%s for %s in %s (%s) on %s, %s\n", json_string(manifest, "name"), json_string(manifest, "target"),
           model_runtime(report->model), model_kernels(report->model), machine_name(), cpu_name());
  for (size_t i = 0; i < report->bundle->outputs->count; i++) output_lines(text, &verdict->outputs[i]);
  if (latency != NULL) {
    text_add(text, "  first %.3f ms, p50 %.3f ms, p90 %.3f ms, p99 %.3f ms over %zu runs on %d threads\n",
             latency->first_ms, latency->times.p50, latency->times.p90, latency->times.p99, latency->times.runs,
             report->threads);
  }
  for (size_t i = 0; i < verdict->num_failures; i++) text_add(text, "  no: %s\n", verdict->failures[i]);
  text_add(text, "%s\n", verdict->num_failures == 0 ? "passed" : "failed");
}
