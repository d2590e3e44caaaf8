#include "judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "metrics.h"

/* One output over all samples: its figures on each, from which the worst are taken. */
typedef struct Output {
  const Json *facts;
  const char *name;
  Array *answer; /* the model's, anew for each sample */
  const Array *quantized, *reference;
  double scale, zero_point;
  int stands_for_integers;
  double *steps, *ratios, *cosines;
  double *expected, *actual; /* room for one sample as real numbers */
  size_t num_equal, num_agreeing, num_right, num_float_right;
} Output;

/* ---------------------------------------------------------------- inputs */

/* Real numbers go in as they are, integers as the real numbers that they stand for. */
static void feed_real(Model *model, const Array *input, const Array *values, const Json *facts) {
  const int is_integer = array_is_integer(values);
  const float scale = (float)json_number_or_nan(facts, "scale");
  const float zero_point = (float)json_number_or_nan(facts, "zero_point");
  unsigned char *memory = model_input_data(model, input);
  for (size_t i = 0; i < values->num_items; i++) {
    const float given = (float)array_real(values, i);
    const float value = is_integer ? (given - zero_point) * scale : given;
    memcpy(memory + i * sizeof value, &value, sizeof value);
  }
}

static void feed_input(Model *model, const Bundle *bundle, const Json *facts, size_t sample) {
  const char *name = json_string(facts, "name");
  const Array *golden = bundle_golden(bundle, "input", name), *input = model_input(model, name);
  const int is_real = strcmp(json_string(facts, "dtype"), "float32") == 0;
  if (input == NULL) fail(EXIT_DAMAGED, "the model has no input '%s'", name);
  const Array values = array_row(golden, sample);
  const int fits = is_real ? input->dtype == DTYPE_FLOAT && input->item_bytes == sizeof(float)
                           : input->dtype == values.dtype && input->item_bytes == values.item_bytes;
  if (!fits || input->num_items != values.num_items) {
    fail(EXIT_DAMAGED, "golden.npz: input/%s is not what the model takes", name);
  }
  if (is_real) {
    feed_real(model, input, &values, facts);
  } else {
    memcpy(model_input_data(model, input), values.data, values.num_items * values.item_bytes);
  }
}

void feed(Model *model, const Bundle *bundle, size_t sample) {
  for (size_t i = 0; i < bundle->inputs->count; i++) feed_input(model, bundle, &bundle->inputs->items[i], sample);
}

/* ---------------------------------------------------------------- one output on one sample */

static Output open_output(Model *model, const Bundle *bundle, const Json *facts) {
  Output output = {.facts = facts, .name = json_string(facts, "name")};
  output.answer = model_output(model, output.name);
  if (output.answer == NULL) fail(EXIT_DAMAGED, "the model has no output '%s'", output.name);
  output.quantized = bundle_golden(bundle, "quantized", output.name);
  output.reference = bundle_golden(bundle, "float", output.name);
  const size_t items = output.answer->num_items;
  if (array_row_items(output.quantized) != items || array_row_items(output.reference) != items) {
    fail(EXIT_DAMAGED, "golden.npz has not as many values for '%s' as the model gives", output.name);
  }
  const Json *integer_dtype = json_find(facts, "integer_dtype");
  output.stands_for_integers = integer_dtype != NULL && integer_dtype->type == JSON_STRING;
  output.scale = json_number_or_nan(facts, "scale");
  output.zero_point = json_number_or_nan(facts, "zero_point");
  output.steps = allocate(bundle->num_samples, sizeof(double));
  output.ratios = allocate(bundle->num_samples, sizeof(double));
  output.cosines = allocate(bundle->num_samples, sizeof(double));
  output.expected = allocate(items, sizeof(double));
  output.actual = allocate(items, sizeof(double));
  return output;
}

/* One value in steps: integers as they are or as they are stood for, other floats in units of the output's scale. */
static double step_of(const Output *output, const Array *values, size_t index) {
  if (array_is_integer(values)) return (double)array_integer(values, index);
  const double steps = array_real(values, index) / output->scale;
  return output->stands_for_integers ? rint(steps) + output->zero_point : steps;
}

static double difference_at(const Output *output, const Array *expected, size_t index) {
  if (array_is_integer(output->answer) && array_is_integer(expected)) { /* exact beyond 2^53 too */
    const int64_t a = array_integer(output->answer, index), b = array_integer(expected, index);
    return (double)(a > b ? (uint64_t)a - (uint64_t)b : (uint64_t)b - (uint64_t)a);
  }
  const double a = step_of(output, output->answer, index), b = step_of(output, expected, index);
  return isfinite(a) && isfinite(b) ? fabs(a - b) : (double)NAN;
}

/* Returns the worst difference in whole steps, and counts the values that are equal. What stays float is compared in
 * parts of a step; less than a thousandth is rounding, not a step. */
static double compare_steps(Output *output, const Array *expected) {
  const double rounding = 1e-3;
  double worst = 0.0;
  for (size_t i = 0; i < expected->num_items; i++) {
    const double difference = difference_at(output, expected, i);
    if (isnan(difference) || difference > worst) worst = isnan(worst) ? worst : difference;
    output->num_equal += difference < rounding;
  }
  return isnan(worst) ? worst : ceil(worst - rounding) + 0.0; /* no -0 */
}

static void judge_sample(Output *output, const Bundle *bundle, size_t sample) {
  const Array quantized = array_row(output->quantized, sample), reference = array_row(output->reference, sample);
  const size_t count = reference.num_items;
  const int is_integer = array_is_integer(output->answer);
  output->steps[sample] = compare_steps(output, &quantized);
  for (size_t i = 0; i < count; i++) {
    const double value = array_real(output->answer, i);
    output->actual[i] = is_integer ? (value - output->zero_point) * output->scale : value;
    output->expected[i] = array_real(&reference, i);
  }
  output->ratios[sample] = sqnr_db(output->expected, output->actual, count);
  output->cosines[sample] = cosine(output->expected, output->actual, count);
  const size_t found = argmax(output->actual, count), wanted = argmax(output->expected, count);
  output->num_agreeing += found == wanted;
  if (bundle->labels != NULL) {
    const int64_t truth = array_integer(bundle->labels, sample);
    output->num_right += (int64_t)found == truth;
    output->num_float_right += (int64_t)wanted == truth;
  }
}

/* ---------------------------------------------------------------- the verdict */

/* The index of the worst figure; NaN is worse than everything. */
static size_t worst(const double *figures, size_t count, int largest_is_worst) {
  size_t found = 0;
  for (size_t i = 0; i < count; i++) {
    if (isnan(figures[i])) return i;
    if (largest_is_worst ? figures[i] > figures[found] : figures[i] < figures[found]) found = i;
  }
  return found;
}

static OutputReport report_on(const Output *output, const Bundle *bundle) {
  const size_t count = bundle->num_samples;
  const double num = (double)count;
  const size_t steps = worst(output->steps, count, 1), ratio = worst(output->ratios, count, 0);
  const size_t angle = worst(output->cosines, count, 0);
  const int is_class = output->reference->rank == 2 && output->reference->shape[1] > 1;
  const OutputReport report = {
      .name = output->name,
      .max_steps = output->steps[steps],
      .worst_steps_sample = bundle_sample_name(bundle, steps),
      .equal_fraction = (double)output->num_equal / (double)output->quantized->num_items,
      .sqnr_db = output->ratios[ratio],
      .worst_sample = bundle_sample_name(bundle, ratio),
      .cosine = output->cosines[angle],
      .worst_cosine_sample = bundle_sample_name(bundle, angle),
      .is_class = is_class,
      .top1_agreement = (double)output->num_agreeing / num,
      .has_labels = is_class && bundle->labels != NULL,
      .float_accuracy = (double)output->num_float_right / num,
      .accuracy = (double)output->num_right / num,
  };
  return report;
}

static void add_failure(Verdict *verdict, Text *failure) {
  verdict->failures = reallocate(verdict->failures, verdict->num_failures + 1, sizeof *verdict->failures);
  verdict->failures[verdict->num_failures++] = failure->data;
}

#define FAILURE(verdict, ...)          \
  do {                                 \
    Text failure = {NULL, 0, 0};       \
    text_add(&failure, __VA_ARGS__);   \
    add_failure((verdict), &failure);  \
  } while (0)

static void add_failures(Verdict *verdict, const OutputReport *report, const Bundle *bundle) {
  const Json *limits = bundle->limits;
  const double num = (double)bundle->num_samples;
  const double min_sqnr_db = json_number(limits, "min_sqnr_db"), min_cosine = json_number(limits, "min_cosine");
  const double min_agreement = json_number(limits, "min_top1_agreement");
  if (isnan(report->max_steps) || isnan(report->sqnr_db) || isnan(report->cosine)) {
    FAILURE(verdict, "%s: NaN or infinite on sample %s", report->name, report->worst_sample);
    return;
  }
  if (report->max_steps > json_number(limits, "max_steps")) {
    FAILURE(verdict, "%s: %.0f steps from the quantized reference on sample %s, limit %s", report->name,
            report->max_steps, report->worst_steps_sample, json_member(limits, "max_steps", JSON_NUMBER)->text);
  }
  if (report->sqnr_db < min_sqnr_db) {
    FAILURE(verdict, "%s: %.1f dB to the float network on sample %s, limit %.1f", report->name, report->sqnr_db,
            report->worst_sample, min_sqnr_db);
  }
  if (report->cosine < min_cosine) {
    FAILURE(verdict, "%s: cosine %.4f to the float network on sample %s, limit %.4f", report->name, report->cosine,
            report->worst_cosine_sample, min_cosine);
  }
  /* In whole samples, so that one of sixteen does not break a limit of 95 % that was kept on a hundred. */
  const double allowed = ceil((1 - min_agreement) * num - 1e-9);
  if (report->is_class && rint((1 - report->top1_agreement) * num) > allowed) {
    FAILURE(verdict, "%s: same class as the float network on %.1f%% of the samples, limit %.1f%%", report->name,
            100 * report->top1_agreement, 100 * min_agreement);
  }
}

Verdict judge(Model *model, const Bundle *bundle) {
  const size_t num_outputs = bundle->outputs->count;
  Verdict verdict = {.outputs = allocate(num_outputs, sizeof *verdict.outputs)};
  Output *outputs = allocate(num_outputs, sizeof *outputs);
  if (num_outputs == 0) fail(EXIT_DAMAGED, "bundle.json has no outputs, and a verdict on nothing would be a yes");
  for (size_t i = 0; i < num_outputs; i++) outputs[i] = open_output(model, bundle, &bundle->outputs->items[i]);
  for (size_t sample = 0; sample < bundle->num_samples; sample++) {
    feed(model, bundle, sample);
    model_run(model);
    for (size_t i = 0; i < num_outputs; i++) judge_sample(&outputs[i], bundle, sample);
  }
  for (size_t i = 0; i < num_outputs; i++) {
    verdict.outputs[i] = report_on(&outputs[i], bundle);
    add_failures(&verdict, &verdict.outputs[i], bundle);
  }
  const double coverage = json_number(bundle->manifest, "integer_coverage");
  const double limit = json_number(bundle->limits, "min_integer_coverage");
  if (!(coverage >= limit)) {
    FAILURE(&verdict, "%.1f%% of the multiplications run on integers, limit %.1f%%", 100 * coverage, 100 * limit);
  }
  return verdict;
}
