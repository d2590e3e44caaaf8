#include "metrics.h"

#include <math.h>
#include <stdlib.h>

#include "fail.h"

static const double max_sqnr_db = 200.0;

/* Adds in the order in which NumPy's sum does, so that both round alike.
 * Source: pairwise_sum in numpy/_core/src/umath/loops_utils.h.src. */
static double sum(const double *values, size_t count) {
  enum { WIDTH = 8, BLOCK = 128 };
  if (count > BLOCK) {
    const size_t half = count / 2 - count / 2 % WIDTH;
    return sum(values, half) + sum(values + half, count - half);
  }
  double total = 0.0;
  size_t done = 0;
  if (count >= WIDTH) {
    double t[WIDTH];
    for (size_t k = 0; k < WIDTH; k++) t[k] = values[k];
    for (done = WIDTH; done + WIDTH <= count; done += WIDTH) {
      for (size_t k = 0; k < WIDTH; k++) t[k] += values[done + k];
    }
    total = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
  }
  for (; done < count; done++) total += values[done];
  return total;
}

static double sum_of_products(const double *left, const double *right, size_t count) {
  double *products = allocate(count, sizeof *products);
  for (size_t i = 0; i < count; i++) products[i] = left[i] * right[i];
  const double total = sum(products, count);
  free(products);
  return total;
}

static int are_finite(const double *values, size_t count) {
  for (size_t i = 0; i < count; i++) {
    if (!isfinite(values[i])) return 0;
  }
  return 1;
}

static double within(double value, double limit) { return fmax(-limit, fmin(limit, value)); }

double sqnr_db(const double *reference, const double *actual, size_t count) {
  if (!are_finite(reference, count) || !are_finite(actual, count)) return (double)NAN;
  double *differences = allocate(count, sizeof *differences);
  for (size_t i = 0; i < count; i++) differences[i] = reference[i] - actual[i];
  const double noise = sum_of_products(differences, differences, count);
  const double signal = sum_of_products(reference, reference, count);
  free(differences);
  if (noise == 0.0) return max_sqnr_db;
  if (signal / noise == 0.0) return -max_sqnr_db;
  return within(10.0 * log10(signal / noise), max_sqnr_db);
}

double cosine(const double *reference, const double *actual, size_t count) {
  if (!are_finite(reference, count) || !are_finite(actual, count)) return (double)NAN;
  const double left = sum_of_products(reference, reference, count), right = sum_of_products(actual, actual, count);
  const double norms = sqrt(left) * sqrt(right);
  if (norms == 0.0) return left == 0.0 && right == 0.0 ? 1.0 : 0.0;
  return within(sum_of_products(reference, actual, count) / norms, 1.0);
}

size_t argmax(const double *values, size_t count) {
  size_t best = 0;
  for (size_t i = 0; i < count; i++) {
    if (isnan(values[i])) return i;
    if (values[i] > values[best]) best = i;
  }
  return best;
}
