/* The sparse half of a dictionary's training step in float32: which latents are active, and everything behind that.
 *
 * Arrays are contiguous. Codes are sparse by rows: the active latents of row b are at[start[b]] ... at[start[b + 1] - 1].
 * A call does the rows (or latents) first .. last - 1, so that the caller may share them among threads; every sum is
 * made by one thread in one order, so the bits do not depend on their number.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define W 8
typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));

static inline V load(const float *from)
{
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(float *to, V v) { memcpy(to, &v, sizeof v); }

/* to += a * from, width floats */
static inline void add(float *to, const float *from, float a, size_t width)
{
    size_t i = 0;
    for (; i + 2 * W <= width; i += 2 * W) {
        store(to + i, load(to + i) + a * load(from + i));
        store(to + i + W, load(to + i + W) + a * load(from + i + W));
    }
    for (; i < width; i++) to[i] += a * from[i];
}

static inline float dot(const float *a, const float *b, size_t width)
{
    V s = {0}, t = {0};
    size_t i = 0;
    for (; i + 2 * W <= width; i += 2 * W) {
        s += load(a + i) * load(b + i);
        t += load(a + i + W) * load(b + i + W);
    }
    float sum = 0;
    s += t;
    for (int k = 0; k < W; k++) sum += s[k];
    for (; i < width; i++) sum += a[i] * b[i];
    return sum;
}

static inline void swap(float *v, int32_t *at, ptrdiff_t i, ptrdiff_t j)
{
    float f = v[i];
    v[i] = v[j];
    v[j] = f;
    int32_t a = at[i];
    at[i] = at[j];
    at[j] = a;
}

/* The k-th largest of n floats moves to place k - 1, larger ones before it; at moves along. What is not a number is
 * larger than all. */
static void partition(float *v, int32_t *at, ptrdiff_t n, ptrdiff_t k)
{
    ptrdiff_t low = 0, high = n - 1;
    while (low < high) {
        ptrdiff_t i = low, j = high, middle = low + (high - low) / 2;
        float pivot = v[middle];
        if (pivot != pivot) {
            swap(v, at, low++, middle);
            if (k - 1 < low) return;
            continue;
        }
        while (i <= j) {
            while (!(v[i] <= pivot)) i++;
            while (v[j] < pivot) j--;
            if (i <= j) swap(v, at, i++, j--);
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            return;
    }
}

/* Appends the entries of a row above a threshold, or not a number; gives how many. Stops at room. */
static size_t above(const float *row, size_t width, float threshold, float *v, int32_t *at, size_t *from, size_t room)
{
    size_t found = 0, i = *from;
    const V t = (V){0} + threshold;
    for (; i + 4 * W <= width && found + 4 * W <= room; i += 4 * W) {
        I any = ~((load(row + i) <= t) & (load(row + i + W) <= t) & (load(row + i + 2 * W) <= t) & (load(row + i + 3 * W) <= t));
        int64_t any8[4];
        memcpy(any8, &any, sizeof any);
        if (any8[0] | any8[1] | any8[2] | any8[3])
            for (size_t j = i; j < i + 4 * W; j++) {
                v[found] = row[j];
                at[found] = (int32_t)j;
                found += !(row[j] <= threshold);
            }
    }
    for (; i < width && i + 4 * W > width && found < room; i++)
        if (!(row[i] <= threshold)) {
            v[found] = row[i];
            at[found++] = (int32_t)i;
        }
    *from = i;
    return found;
}

/* The k largest positive entries of each row [width]: values and at [rows, k], in ascending order of at, behind them
 * zeros; count [rows]. scratch: 8 k + 512 floats and as many whole numbers, in that order. */
void sparse_top(const float *pre, float *values, int32_t *at, int32_t *count, size_t width, size_t k, size_t first,
                size_t last, float *scratch)
{
    size_t room = 4 * k + 256;
    int32_t *places = (int32_t *)(scratch + room);
    for (size_t b = first; b < last; b++) {
        const float *row = pre + b * width;
        float threshold = 0;
        size_t held = 0, from = 0;
        while (1) {
            held += above(row, width, threshold, scratch + held, places + held, &from, room - held);
            if (held > k) {
                partition(scratch, places, (ptrdiff_t)held, (ptrdiff_t)k);
                held = k;
                threshold = scratch[k - 1];
            }
            if (from >= width) break;
        }
        for (size_t i = 1; i < held; i++) { /* in the order of the latents: sums do not depend on the search */
            float v = scratch[i];
            int32_t a = places[i];
            size_t j = i;
            for (; j > 0 && places[j - 1] > a; j--) {
                scratch[j] = scratch[j - 1];
                places[j] = places[j - 1];
            }
            scratch[j] = v;
            places[j] = a;
        }
        memcpy(values + b * k, scratch, 4 * held);
        memcpy(at + b * k, places, 4 * held);
        memset(values + b * k + held, 0, 4 * (k - held));
        memset(at + b * k + held, 0, 4 * (k - held));
        count[b] = (int32_t)held;
    }
}

/* How many entries of each row exceed the threshold or are not a number: those that above() finds. */
void sparse_count(const float *pre, const float *threshold, int32_t *count, size_t width, size_t first, size_t last)
{
    for (size_t b = first; b < last; b++) {
        const float *row = pre + b * width;
        const V t = (V){0} + *threshold;
        I sum = {0};
        size_t i = 0;
        int32_t total = 0;
        for (; i + W <= width; i += W) sum -= ~(load(row + i) <= t);
        for (; i < width; i++) total += !(row[i] <= *threshold);
        for (int k = 0; k < W; k++) total += sum[k];
        count[b] = total;
    }
}

/* Those entries, from start[b] on in values and at. */
void sparse_above(const float *pre, const float *threshold, const int64_t *start, float *values, int32_t *at,
                  size_t width, size_t first, size_t last, float *scratch)
{
    int32_t *places = (int32_t *)(scratch + 1024);
    for (size_t b = first; b < last; b++) {
        size_t from = 0;
        int64_t to = start[b];
        while (from < width) {
            size_t found = above(pre + b * width, width, *threshold, scratch, places, &from, 1024);
            memcpy(values + to, scratch, 4 * found);
            memcpy(at + to, places, 4 * found);
            to += (int64_t)found;
        }
    }
}

/* out [rows, width] = bias + sum of value * weight[at] */
void sparse_decode(const int64_t *start, const int32_t *at, const float *values, const float *weight, const float *bias,
                   float *out, size_t width, size_t first, size_t last)
{
    for (size_t b = first; b < last; b++) {
        float *row = out + b * width;
        memcpy(row, bias, 4 * width);
        for (int64_t i = start[b]; i < start[b + 1]; i++) add(row, weight + (size_t)at[i] * width, values[i], width);
    }
}

/* by value: grad [rows, width] times weight[at], for each active latent */
void sparse_values(const int64_t *start, const int32_t *at, const float *weight, const float *grad, float *by_value,
                   size_t width, size_t first, size_t last)
{
    for (size_t b = first; b < last; b++)
        for (int64_t i = start[b]; i < start[b + 1]; i++)
            by_value[i] = dot(grad + b * width, weight + (size_t)at[i] * width, width);
}

/* By latents: the entries of latent j are order[start[j]] ..., each of row rows[..]. d_dec [latents, width] = sum of
 * value * grad[row], d_enc [latents, width] = sum of by_value * x[row], d_bias [latents] = sum of by_value. */
void sparse_weights(const int64_t *start, const int64_t *order, const int64_t *rows, const float *values,
                    const float *by_value, const float *grad, const float *x, float *d_dec, float *d_enc, float *d_bias,
                    size_t width, size_t first, size_t last)
{
    for (size_t j = first; j < last; j++) {
        float *dec = d_dec + j * width, *enc = d_enc + j * width, sum = 0;
        memset(dec, 0, 4 * width);
        memset(enc, 0, 4 * width);
        for (int64_t i = start[j]; i < start[j + 1]; i++) {
            int64_t entry = order[i];
            size_t b = (size_t)rows[entry];
            add(dec, grad + b * width, values[entry], width);
            add(enc, x + b * width, by_value[entry], width);
            sum += by_value[entry];
        }
        d_bias[j] = sum;
    }
}

/* Counting sort of n entries by latent, stable: order [n], start [latents + 1]. */
void sparse_order(const int32_t *at, int64_t *start, int64_t *order, size_t n, size_t latents)
{
    memset(start, 0, 8 * (latents + 1));
    for (size_t i = 0; i < n; i++) start[at[i] + 1]++;
    for (size_t j = 0; j < latents; j++) start[j + 1] += start[j];
    for (size_t i = 0; i < n; i++) order[start[at[i]]++] = (int64_t)i;
    for (size_t j = latents; j > 0; j--) start[j] = start[j - 1];
    start[0] = 0;
}

/* How many entries of each row lie within half of their column's threshold. */
void jump_count(const float *pre, const float *threshold, const float *half, int32_t *count, size_t width, size_t first,
                size_t last)
{
    const V h = (V){0} + *half;
    for (size_t b = first; b < last; b++) {
        const float *row = pre + b * width;
        I sum = {0};
        size_t i = 0;
        int32_t total = 0;
        for (; i + W <= width; i += W) {
            V d = load(row + i) - load(threshold + i);
            sum -= (d < h) & (d > -h);
        }
        for (; i < width; i++) total += row[i] - threshold[i] < *half && row[i] - threshold[i] > -*half;
        for (int k = 0; k < W; k++) total += sum[k];
        count[b] = total;
    }
}

/* Those entries, from start[b] on: their places in pre and their values; then every entry that is not above both 0 and
 * its threshold becomes 0; a NaN stays, so that training stops at it. */
void jump_apply(float *pre, const float *threshold, const float *half, const int64_t *start, int64_t *at, float *values,
                size_t width, size_t first, size_t last)
{
    for (size_t b = first; b < last; b++) {
        float *row = pre + b * width;
        int64_t to = start[b];
        for (size_t i = 0; i < width; i += 4 * W) {
            size_t end = i + 4 * W < width ? i + 4 * W : width;
            int any = 0;
            for (size_t j = i; j < end; j++) {
                float d = row[j] - threshold[j];
                any |= (d < *half) & (d > -*half);
            }
            if (any)
                for (size_t j = i; j < end; j++)
                    if (row[j] - threshold[j] < *half && row[j] - threshold[j] > -*half) {
                        at[to] = (int64_t)(b * width + j);
                        values[to++] = row[j];
                    }
            for (size_t j = i; j < end; j++) row[j] = (row[j] <= threshold[j]) | (row[j] <= 0) ? 0.0f : row[j];
        }
    }
}

/* In how many rows each column first .. last - 1 is not zero. */
void column_count(const float *f, int64_t *count, size_t rows, size_t width, size_t first, size_t last)
{
    memset(count + first, 0, 8 * (last - first));
    for (size_t b = 0; b < rows; b++)
        for (size_t j = first; j < last; j++) count[j] += f[b * width + j] != 0;
}
