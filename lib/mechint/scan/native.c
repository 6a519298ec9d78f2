/* The selective scan in float32, a block of channels at a time: the block's states stay in registers and cache.
 *
 * Arrays are contiguous: u, dt, y [B, L, E]; A [E, N]; B, C [B, L, N]; states [.., E, N]. Work is cut into (row,
 * block of channels) pairs; a call does the pairs first .. last - 1, so that the caller may share them among threads.
 * Every operation is elementwise over channels and sequential over N and L, and only fused() fuses a product with a sum:
 * on one kind of processor the same numbers come out in the same bits whatever the threads or the pieces of a sequence.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#define W 8 /* wider vectors than the processor's are taken apart badly: 16 was 3 times slower on AVX2 */
typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));

/* a b + c in one rounding where the processor has that; twice as many operations where it has not. */
static inline V fused(V a, V b, V c)
{
#ifdef __FP_FAST_FMAF
    for (int k = 0; k < W; k++) c[k] = __builtin_fmaf(a[k], b[k], c[k]);
    return c;
#else
    return a * b + c;
#endif
}

/* The greater and the lesser; x where x is not a number. */
static inline V greater(V bound, V x)
{
#ifdef __AVX__
    return (V)_mm256_max_ps((__m256)bound, (__m256)x);
#else
    for (int k = 0; k < W; k++) x[k] = bound[k] > x[k] ? bound[k] : x[k];
    return x;
#endif
}

static inline V lesser(V bound, V x)
{
#ifdef __AVX__
    return (V)_mm256_min_ps((__m256)bound, (__m256)x);
#else
    for (int k = 0; k < W; k++) x[k] = bound[k] < x[k] ? bound[k] : x[k];
    return x;
#endif
}

static inline V broadcast(float x)
{
    V v;
    for (int k = 0; k < W; k++) v[k] = x;
    return v;
}

#define LOG2E 1.44269504f
/* 1.5 * 2^23: adding it rounds to a whole number, and leaves that in the lowest bits; 127 is the exponent's offset. */
#define MAGIC (12582912.0f + 127.0f)

/* 2^n 2^r, n = t - MAGIC and |r| <= 1/2: a minimax polynomial of degree 6, 2e-8. */
static inline V power_of(V t, V r)
{
    V p = fused(broadcast(1.535336196e-4f), r, broadcast(1.339887385e-3f));
    p = fused(p, r, broadcast(9.618436918e-3f));
    p = fused(p, r, broadcast(5.550332367e-2f));
    p = fused(p, r, broadcast(2.402264774e-1f));
    p = fused(p, r, broadcast(6.931471825e-1f));
    p = fused(p, r, broadcast(1.0f));
    return p * (V)((I)t << 23);
}

/* 2^x to about one unit in the last place. Below 2^-127 it is 0 and above 2^127.5 infinite, as a float is soon after:
 * the powers of two for n = -127 and 128 are. What is not a number stays so. */
static inline V power(V x)
{
    x = lesser(broadcast(128.0f), greater(broadcast(-127.0f), x));
    V t = x + MAGIC;
    return power_of(t, x - (t - MAGIC));
}

/* e^x to about one unit in the last place, also where x is large: its product with log2(e) is not rounded. */
static inline V vexp(V x)
{
    x = lesser(broadcast(89.0f), greater(broadcast(-88.0f), x));
    V t = fused(x, broadcast(LOG2E), broadcast(MAGIC)), n = t - MAGIC;
    V r = fused(n, broadcast(-0.693359375f), x); /* exact: ln 2 in two parts */
    return power_of(t, fused(n, broadcast(2.12194440e-4f), r) * LOG2E);
}

static inline V load(const float *from, size_t count)
{
    V v = (V){0};
    if (count == W)
        memcpy(&v, from, sizeof v);
    else
        memcpy(&v, from, 4 * count);
    return v;
}

static inline void store(float *to, V v, size_t count)
{
    if (count == W)
        memcpy(to, &v, sizeof v);
    else
        memcpy(to, &v, 4 * count);
}

/* Rows become columns. */
static inline void transpose(V r[W])
{
#ifdef __AVX__
    __m256 pair[W], four[W];
    for (int k = 0; k < W; k += 2) {
        pair[k] = _mm256_unpacklo_ps((__m256)r[k], (__m256)r[k + 1]);
        pair[k + 1] = _mm256_unpackhi_ps((__m256)r[k], (__m256)r[k + 1]);
    }
    for (int k = 0; k < W; k += 4)
        for (int half = 0; half < 2; half++) {
            four[k + 2 * half] = _mm256_shuffle_ps(pair[k + half], pair[k + 2 + half], 0x44);
            four[k + 2 * half + 1] = _mm256_shuffle_ps(pair[k + half], pair[k + 2 + half], 0xee);
        }
    for (int k = 0; k < 4; k++) {
        r[k] = (V)_mm256_permute2f128_ps(four[k], four[k + 4], 0x20);
        r[k + 4] = (V)_mm256_permute2f128_ps(four[k], four[k + 4], 0x31);
    }
#else
    for (int i = 0; i < W; i++)
        for (int k = 0; k < i; k++) {
            float kept = r[i][k];
            r[i][k] = r[k][i], r[k][i] = kept;
        }
#endif
}

/* [E, N] rows of a block -> [N] vectors over its channels, and back. */
static void gather(V *to, const float *from, size_t N, size_t count)
{
    size_t n = 0;
    for (; count == W && n + W <= N; n += W) {
        for (int e = 0; e < W; e++) to[n + e] = load(from + e * N + n, W);
        transpose(to + n);
    }
    for (; n < N; n++) {
        V v = (V){0};
        for (size_t e = 0; e < count; e++) v[e] = from[e * N + n];
        to[n] = v;
    }
}

static void scatter(float *to, const V *from, size_t N, size_t count)
{
    size_t n = 0;
    for (; count == W && n + W <= N; n += W) {
        V r[W];
        memcpy(r, from + n, sizeof r);
        transpose(r);
        for (int e = 0; e < W; e++) store(to + e * N + n, r[e], W);
    }
    for (; n < N; n++)
        for (size_t e = 0; e < count; e++) to[e * N + n] = from[n][e];
}

/* The sum of each of `size` vectors, from its first number to its last. */
static void row_sums(float *to, const V *from, size_t size)
{
    size_t i = 0;
    for (; i + W <= size; i += W) {
        V r[W], sum = (V){0};
        memcpy(r, from + i, sizeof r);
        transpose(r);
        for (int k = 0; k < W; k++) sum = sum + r[k];
        store(to + i, sum, W);
    }
    for (; i < size; i++) {
        float sum = 0;
        for (int k = 0; k < W; k++) sum += from[i][k];
        to[i] = sum;
    }
}

/* x σ(x) */
static inline V vsilu(V x)
{
    return x / (vexp(-x) + 1.0f);
}

/* log(1 + e^x) = max(x, 0) + 2 artanh(s), s = y / (2 + y) with y = e^-|x|: no cancellation, so that a small step size
 * keeps its digits. s is at most 1/3; seven terms of the series leave 2e-8. */
static inline V vsoftplus(V x)
{
    V above = (V)((I)x & (I)(x > (V){0})), y = vexp((V)((I)x | INT32_MIN)), s = y / (y + 2.0f), q = s * s;
    V p = fused((V){0} + 1.0f / 13, q, (V){0} + 1.0f / 11);
    p = fused(p, q, (V){0} + 1.0f / 9);
    p = fused(p, q, (V){0} + 1.0f / 7);
    p = fused(p, q, (V){0} + 1.0f / 5);
    p = fused(p, q, (V){0} + 1.0f / 3);
    return above + fused(p * q, s, s) * 2.0f;
}

/* boundaries, if any: the state before every `chunk`-th position, [B, chunks, E, N]; last, if any: the last state.
 * A is [N, E] here, and row b starts from initial's row b % rows. With z, whose positions are `stride` apart, dt is what
 * Δ is the softplus of, and the output is (Σ C h + D u) SiLU(z). A tile's softplus and gate are loops of their own:
 * inside the recurrence they would wait for one another. work: 2 N vectors. */
#define TILE 16
void scan_forward(const float *u, const float *dt, const float *A, const float *B, const float *C, const float *initial,
                  const float *D, const float *z, float *y, float *last, float *boundaries, size_t stride, size_t rows,
                  size_t L, size_t E, size_t N, size_t chunk, size_t from_pair, size_t to_pair, V *work)
{
    size_t blocks = (E + W - 1) / W, chunks = (L + chunk - 1) / chunk;
    V *a = work, *h = work + N;
    for (size_t pair = from_pair; pair < to_pair; pair++) {
        size_t b = pair / blocks, e = pair % blocks * W, count = E - e < W ? E - e : W;
        for (size_t n = 0; n < N; n++) a[n] = load(A + n * E + e, count) * LOG2E;
        gather(h, initial + (b % rows * E + e) * N, N, count);
        for (size_t start = 0; start < L; start += TILE) {
            size_t end = start + TILE < L ? start + TILE : L;
            V d[TILE], sums[TILE];
            for (size_t t = start; t < end; t++) d[t - start] = load(dt + (b * L + t) * E + e, count);
            for (size_t t = start; z && t < end; t++) d[t - start] = vsoftplus(d[t - start]);
            for (size_t t = start; t < end; t++) {
                if (boundaries && t % chunk == 0)
                    scatter(boundaries + ((b * chunks + t / chunk) * E + e) * N, h, N, count);
                const float *bt = B + (b * L + t) * N, *ct = C + (b * L + t) * N;
                V step = d[t - start], du = step * load(u + (b * L + t) * E + e, count), sum = (V){0};
                for (size_t n = 0; n < N; n++) {
                    V s = power(step * a[n]) * h[n];
                    h[n] = s + du * bt[n];
                    sum = fused(h[n], broadcast(ct[n]), sum);
                }
                sums[t - start] = sum;
            }
            for (size_t t = start; t < end; t++) {
                size_t here = (b * L + t) * E + e;
                V sum = sums[t - start];
                if (z) {
                    V skip = load(D + e, count) * load(u + here, count);
                    sum = (sum + skip) * vsilu(load(z + (b * L + t) * stride + e, count));
                }
                store(y + here, sum, count);
            }
        }
        if (last) scatter(last + (b * E + e) * N, h, N, count);
    }
}

/* Causal depthwise convolution, [B, L, E], of positions first .. last - 1 of a flattened batch and position; weight
 * [K, E]; bias [E] or none. x's rows and positions, and the rows of memory [rows, K - 1, E], are so many floats apart;
 * row b's memory is row b % rows. */
void mix_conv(const float *x, const float *memory, const float *weight, const float *bias, float *out,
              size_t row_stride, size_t stride, size_t memory_stride, size_t rows, size_t L, size_t E, size_t K,
              size_t silu, size_t first, size_t last)
{
    for (size_t i = first; i < last; i++) {
        size_t b = i / L, t = i % L;
        const float *from[K]; /* the inputs of the K taps */
        for (size_t k = 0; k < K; k++)
            from[k] = t + k < K - 1 ? memory + b % rows * memory_stride + (t + k) * E
                                    : x + b * row_stride + (t + k - (K - 1)) * stride;
        for (size_t e = 0; e < E; e += W) {
            size_t count = E - e < W ? E - e : W;
            V c = bias ? load(bias + e, count) : (V){0};
            for (size_t k = 0; k < K; k++) c = c + load(weight + k * E + e, count) * load(from[k] + e, count);
            store(out + i * E + e, silu ? vsilu(c) : c, count);
        }
    }
}

/* Elementwise, of so many floats: blocks first .. last - 1 of W. */
void mix_silu(const float *x, float *out, size_t size, size_t first, size_t last)
{
    for (size_t i = first * W; i < last * W && i < size; i += W) {
        size_t count = size - i < W ? size - i : W;
        store(out + i, vsilu(load(x + i, count)), count);
    }
}

void mix_softplus(const float *x, float *out, size_t size, size_t first, size_t last)
{
    for (size_t i = first * W; i < last * W && i < size; i += W) {
        size_t count = size - i < W ? size - i : W;
        store(out + i, vsoftplus(load(x + i, count)), count);
    }
}

/* The end of a mixer whose heads have matrix memories, row by row: (y + skip u) times the gate, and its norm in groups of
 * `group` neighbours. u and skip may be NULL. raw: the gate is SiLU of what is given. order: 0 has no norm, 1 norms the
 * product, 2 norms before it gates. Rows of u and of the gate begin `u_stride` and `gate_stride` apart. */
void mix_finish(const float *y, const float *u, const float *skip, const float *gate, const float *weight,
                const float *eps, float *out, size_t u_stride, size_t gate_stride, size_t E, size_t group, size_t raw,
                size_t order, size_t first, size_t last)
{
    for (size_t row = first; row < last; row++) {
        const float *from = y + row * E, *g = gate + row * gate_stride;
        float *to = out + row * E;
        for (size_t begin = 0; begin < E; begin += group) {
            V squares = (V){0};
            for (size_t e = begin; e < begin + group; e += W) {
                size_t count = begin + group - e < W ? begin + group - e : W;
                V w = load(from + e, count);
                if (u) w = w + load(skip + e, count) * load(u + row * u_stride + e, count);
                if (order < 2) {
                    V by = load(g + e, count);
                    w = w * (raw ? vsilu(by) : by);
                }
                squares = squares + w * w;
                store(to + e, w, count);
            }
            if (!order) continue;
            float sum = 0;
            for (size_t k = 0; k < W; k++) sum += squares[k];
            float scale = 1 / __builtin_sqrtf(sum / (float)group + *eps);
            for (size_t e = begin; e < begin + group; e += W) {
                size_t count = begin + group - e < W ? begin + group - e : W;
                V w = load(weight + e, count) * (load(to + e, count) * scale);
                if (order == 2) {
                    V by = load(g + e, count);
                    w = w * (raw ? vsilu(by) : by);
                }
                store(to + e, w, count);
            }
        }
    }
}

/* Gradients of mix_conv without SiLU: dx [rows, L, E], dmemory [rows, K - 1, E], dweight [K, E], dbias [E]; blocks
 * first .. last - 1 of channels. Sums over positions are taken `chunk` at a time, then over the chunks. work: 3 K. */
void mix_conv_back(const float *grad, const float *x, const float *memory, const float *weight, float *dx,
                   float *dmemory, float *dweight, float *dbias, size_t row_stride, size_t stride, size_t memory_stride,
                   size_t rows, size_t L, size_t E, size_t K, size_t chunk, size_t first, size_t last, V *work)
{
    V *w = work, *part = w + K, *whole = part + K;
    for (size_t e = first * W; e < last * W && e < E; e += W) {
        size_t count = E - e < W ? E - e : W, past = K - 1;
        V all = (V){0};
        for (size_t k = 0; k < K; k++) w[k] = load(weight + k * E + e, count), part[k] = whole[k] = (V){0};
        for (size_t b = 0; b < rows; b++) {
            V bias = (V){0};
            for (size_t i = 0; i < past + L; i++) { /* inputs, those of the memory first; tap k's output is i - k */
                V in = load(i < past ? memory + b * memory_stride + i * E + e
                                     : x + b * row_stride + (i - past) * stride + e, count), d = (V){0};
                for (size_t k = i < L ? 0 : i - L + 1; k < K && k <= i; k++) {
                    V g = load(grad + (b * L + i - k) * E + e, count);
                    d = fused(w[k], g, d);
                    part[k] = fused(g, in, part[k]);
                }
                if (i < L) bias = bias + load(grad + (b * L + i) * E + e, count);
                store(i < past ? dmemory + (b * past + i) * E + e : dx + (b * L + i - past) * E + e, d, count);
                if ((i + 1) % chunk == 0 || i + 1 == past + L)
                    for (size_t k = 0; k < K; k++) whole[k] = whole[k] + part[k], part[k] = (V){0};
            }
            all = all + bias;
        }
        for (size_t k = 0; k < K; k++) store(dweight + k * E + e, whole[k], count);
        store(dbias + e, all, count);
    }
}

/* dB, dC: shares of each group of blocks, [groups, B, L, N]; dA: shares of each row, [B, E, N]; dh0 [B, E, N]: both keep
 * what goes on from chunk to chunk. Work is cut into (row, group) pairs, whose blocks go through a chunk one after the
 * other: their sums over channels wait until its end. work: (5 + 4 chunk) N vectors. */
void scan_backward(const float *u, const float *dt, const float *A, const float *B, const float *C,
                   const float *boundaries, const float *dy, const float *dlast, float *du_, float *ddt, float *dA,
                   float *dB, float *dC, float *dh0, size_t rows, size_t L, size_t E, size_t N, size_t chunk,
                   size_t groups, size_t from_pair, size_t to_pair, V *work)
{
    size_t blocks = (E + W - 1) / W, chunks = (L + chunk - 1) / chunk;
    V *a = work, *g = a + N, *ga = g + N, *h = ga + N, *rates = h + N, *states = rates + N;
    V *decays = states + chunk * N, *to_b = decays + chunk * N, *to_c = to_b + chunk * N;
    for (size_t pair = from_pair; pair < to_pair; pair++) {
        size_t b = pair / groups, group = pair % groups;
        size_t from = blocks * group / groups, to = blocks * (group + 1) / groups;
        for (size_t e = from * W; !L && e < to * W && e < E; e++) /* no position: the state passes through */
            for (size_t i = (b * E + e) * N; i < (b * E + e + 1) * N; i++) dA[i] = 0, dh0[i] = dlast[i];
        for (size_t c = chunks; c-- > 0;) {
            size_t start = c * chunk, end = start + chunk < L ? start + chunk : L;
            for (size_t i = 0; i < (end - start) * N; i++) to_b[i] = to_c[i] = (V){0};
            for (size_t block = from; block < to; block++) {
                size_t e = block * W, count = E - e < W ? E - e : W, own = (b * E + e) * N;
                gather(a, A + e * N, N, count);
                for (size_t n = 0; n < N; n++) rates[n] = a[n] * LOG2E, ga[n] = (V){0};
                gather(g, (c + 1 == chunks ? dlast : dh0) + own, N, count);
                if (c + 1 < chunks) gather(ga, dA + own, N, count);
                gather(h, boundaries + ((b * chunks + c) * E + e) * N, N, count);
                for (size_t t = start; t < end; t++) {
                    const float *bt = B + (b * L + t) * N;
                    V d = load(dt + (b * L + t) * E + e, count), du = d * load(u + (b * L + t) * E + e, count);
                    V *before = t == start ? h : states + (t - 1 - start) * N;
                    for (size_t n = 0; n < N; n++) {
                        V decay = power(d * rates[n]);
                        decays[(t - start) * N + n] = decay;
                        states[(t - start) * N + n] = decay * before[n] + du * bt[n];
                    }
                }
                for (size_t t = end; t-- > start;) {
                    const float *bt = B + (b * L + t) * N, *ct = C + (b * L + t) * N;
                    size_t here = (b * L + t) * E + e, row = (t - start) * N;
                    V d = load(dt + here, count), x = load(u + here, count), du = d * x;
                    V gy = load(dy + here, count), into = (V){0}, rate = (V){0};
                    V *before = t == start ? h : states + row - N;
                    for (size_t n = 0; n < N; n++) {
                        V gh = fused(gy, broadcast(ct[n]), g[n]), gd = gh * decays[row + n], exponent = gd * before[n];
                        to_c[row + n] = fused(gy, states[row + n], to_c[row + n]);
                        to_b[row + n] = fused(gh, du, to_b[row + n]);
                        into = fused(gh, broadcast(bt[n]), into);
                        rate = fused(exponent, a[n], rate);
                        ga[n] = fused(exponent, d, ga[n]);
                        g[n] = gd;
                    }
                    store(du_ + here, into * d, count);
                    store(ddt + here, fused(into, x, rate), count);
                }
                scatter(dA + own, ga, N, count);
                scatter(dh0 + own, g, N, count);
            }
            size_t at = ((group * rows + b) * L + start) * N;
            row_sums(dB + at, to_b, (end - start) * N);
            row_sums(dC + at, to_c, (end - start) * N);
        }
    }
}

/* exp(dt A), [rows, E, N]; rows first .. last - 1 of a flattened batch and position. */
void scan_decay(const float *dt, const float *A, float *decay, size_t E, size_t N, size_t from_row, size_t to_row)
{
    for (size_t row = from_row; row < to_row; row++)
        for (size_t e = 0; e < E; e++) {
            float d = dt[row * E + e], *out = decay + (row * E + e) * N;
            for (size_t n = 0; n < N; n += W) {
                size_t count = N - n < W ? N - n : W;
                store(out + n, power(d * (load(A + e * N + n, count) * LOG2E)), count);
            }
        }
}

/* Σ_n C h, summed in the order of scan_forward: h [rows, E, N], C [rows, N] -> y [rows, E]. */
void scan_read(const float *h, const float *C, float *y, size_t E, size_t N, size_t from_row, size_t to_row)
{
    for (size_t row = from_row; row < to_row; row++)
        for (size_t e = 0; e < E; e++) {
            float sum = 0;
            for (size_t n = 0; n < N; n++)
#ifdef __FP_FAST_FMAF
                sum = __builtin_fmaf(h[(row * E + e) * N + n], C[row * N + n], sum);
#else
                sum = sum + h[(row * E + e) * N + n] * C[row * N + n];
#endif
            y[row * E + e] = sum;
        }
}
