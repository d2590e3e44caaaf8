/* Run a bundle's model on this device and say whether its answers are right: exit code 0 for yes, 12 for no.
 *
 * The C form of run_parity.py, for devices without Python: the same questions, arguments, report and exit codes. It
 * needs libLiteRt.so (2.2 or newer) beside it or where the system looks, and the bundle. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bundle.h"
#include "fail.h"
#include "file.h"
#include "judge.h"
#include "latency.h"
#include "litert.h"
#include "report.h"

static const double default_latency_s = 2.0;

typedef struct Options {
  const char *bundle, *json;
  int threads;
  double latency_s, sustained_s; /* negative: not asked for */
} Options;

static const char usage[] =
    "usage: run_parity [--threads N] [--json FILE] [--latency [SECONDS]] [--sustained SECONDS] [BUNDLE]\n"
    "\n"
    "Run BUNDLE here and say whether its answers are right; left out, it is the folder of this program.\n"
    "  --threads N            of the runtime (default: 1)\n"
    "  --json FILE            write the report to FILE\n"
    "  --latency [SECONDS]    measure inferences for 2 SECONDS\n"
    "  --sustained SECONDS    run on and watch temperature and frequency\n"
    "Exit codes: 0 yes, 12 no, 11 a damaged bundle, 13 no LiteRT, 2 wrong usage.";

static double number_of(const char *option, const char *text) {
  char *end;
  const double number = strtod(text, &end);
  if (end == text || *end != '\0' || !isfinite(number) || number < 0) {
    fail(EXIT_USAGE, "%s takes a number, got '%s'", option, text);
  }
  return number;
}

static int is_number(const char *text) { return text != NULL && text[0] >= '0' && text[0] <= '9'; }

static Options read_options(char **arguments) {
  Options options = {NULL, NULL, 1, -1, -1};
  for (char **at = arguments + 1; *at != NULL; at++) {
    const char *option = *at;
    if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0) {
      puts(usage);
      exit(EXIT_PASSED);
    } else if (strcmp(option, "--latency") == 0) {
      options.latency_s = is_number(at[1]) ? number_of(option, *++at) : default_latency_s;
    } else if (option[0] != '-' && options.bundle == NULL) {
      options.bundle = option;
    } else if (at[1] == NULL) {
      fail(EXIT_USAGE, "unknown argument, or one without its value: %s\n%s", option, usage);
    } else if (strcmp(option, "--json") == 0) {
      options.json = *++at;
    } else if (strcmp(option, "--sustained") == 0) {
      options.sustained_s = number_of(option, *++at);
    } else if (strcmp(option, "--threads") == 0) {
      const double threads = number_of(option, *++at);
      if (threads < 1 || threads > 1024 || threads != floor(threads)) fail(EXIT_USAGE, "--threads takes 1 to 1024, got %s", *at);
      options.threads = (int)threads;
    } else {
      fail(EXIT_USAGE, "unknown argument: %s\n%s", option, usage);
    }
  }
  return options;
}

static const char *own_folder(void) {
  enum { ROOM = 4096 };
  char *path = allocate(ROOM, 1);
  const ssize_t length = readlink("/proc/self/exe", path, ROOM - 1);
  char *slash = length <= 0 ? NULL : strrchr(path, '/');
  if (slash == NULL) return ".";
  slash[slash == path] = '\0';
  return path;
}

static void write_json(const char *path, const Report *report) {
  Text text = {NULL, 0, 0};
  report_json(&text, report);
  FILE *file = fopen(path, "wb");
  const int is_written = file != NULL && fwrite(text.data, 1, text.length, file) == text.length;
  if (file == NULL || fclose(file) != 0 || !is_written) fail(EXIT_ERROR, "cannot write %s: %s", path, strerror(errno));
}

int main(int count, char **arguments) {
  const Options options = read_options(arguments);
  (void)count;
  const Bundle bundle = bundle_read(options.bundle != NULL ? options.bundle : own_folder());
  const Json *file = json_member(bundle.manifest, "model", JSON_OBJECT);
  if (strcmp(json_string(file, "format"), "tflite") != 0) {
    fail(EXIT_NO_RUNTIME, "LiteRT cannot load a .%s model", json_string(file, "format"));
  }
  Model *model = model_open(path_in(bundle.folder, json_string(file, "file")), options.threads);
  Latency latency;
  const int is_measured = options.latency_s >= 0 || options.sustained_s >= 0;
  if (is_measured) {
    feed(model, &bundle, 0);
    latency = latency_measure(model, options.latency_s > 0 ? options.latency_s : default_latency_s, options.sustained_s);
  }
  const Verdict verdict = judge(model, &bundle);
  const Report report = {&bundle, model, &verdict, is_measured ? &latency : NULL, options.threads};
  Text lines = {NULL, 0, 0};
  report_lines(&lines, &report);
  if (options.json != NULL) write_json(options.json, &report);
  fputs(lines.data, stdout);
  return verdict.num_failures == 0 ? EXIT_PASSED : EXIT_NOT_EQUAL;
}
