/* How far an answer is from another one: the arithmetic of run_parity.py, to the last bit. */
#ifndef METRICS_H
#define METRICS_H

#include <stddef.h>

/* Signal-to-quantization-noise ratio in dB, within +-200; NaN if a value is NaN or infinite. */
double sqnr_db(const double *reference, const double *actual, size_t count);

/* Cosine of the angle between two arrays; 1 for two zero arrays, 0 if one is zero, NaN for NaN and infinity. */
double cosine(const double *reference, const double *actual, size_t count);

/* The index of the largest value: the first one of several, and the first NaN before everything. */
size_t argmax(const double *values, size_t count);

#endif
