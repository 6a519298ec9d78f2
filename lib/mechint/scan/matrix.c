/* The recurrence of matrix memories in float32, a head at a time: its state stays in the cache.
 *
 * Arrays are contiguous: decay [B, L, H] or, where keys have decays of their own, [B, L, H, K]; key, query, erase and
 * erased [B, L, H, K]; value and y [B, L, H, V]; states [B, H, K, V]. Work is cut into (row, head) pairs; a call does the
 * pairs first .. last - 1. Every operation is elementwise over V and sequential over K and L, and none fuses a product
 * with a sum: a sequence in pieces, or one step after another, comes out in the same bits.
 */
#include <stddef.h>
#include <string.h>

#define W 8
typedef float Vec __attribute__((vector_size(4 * W)));

/* The sum of products, W sums side by side and then together: an order that depends on n alone. */
static float dot(const float *restrict a, const float *restrict b, size_t n)
{
    Vec part = (Vec){0}, other = (Vec){0};
    float sum = 0;
    size_t j = 0;
    for (; j + 2 * W <= n; j += 2 * W) {
        Vec x, y, z, w;
        memcpy(&x, a + j, sizeof x);
        memcpy(&y, b + j, sizeof y);
        memcpy(&z, a + j + W, sizeof z);
        memcpy(&w, b + j + W, sizeof w);
        part += x * y;
        other += z * w;
    }
    for (; j < n; j++) sum += a[j] * b[j];
    part += other;
    for (size_t k = 0; k < W; k++) sum += part[k];
    return sum;
}

/* S <- (I - p r') (a S); gone [V] is scratch. Nothing is erased where p is NULL. */
static void decay_state(float *restrict S, const float *restrict a, size_t own, const float *restrict p,
                        const float *restrict r, float *restrict gone, size_t K, size_t V)
{
    if (p == NULL) {
        for (size_t k = 0; k < K; k++) {
            float x = a[own ? k : 0];
            for (size_t v = 0; v < V; v++) S[k * V + v] = x * S[k * V + v];
        }
        return;
    }
    memset(gone, 0, 4 * V);
    for (size_t k = 0; k < K; k++) {
        float x = a[own ? k : 0], y = r[k];
        for (size_t v = 0; v < V; v++) {
            float kept = x * S[k * V + v];
            S[k * V + v] = kept;
            gone[v] = gone[v] + y * kept;
        }
    }
    for (size_t k = 0; k < K; k++) {
        float x = p[k];
        for (size_t v = 0; v < V; v++) S[k * V + v] = S[k * V + v] - x * gone[v];
    }
}

/* S <- S + k v', and y = q' S. */
static void write_and_read(float *restrict S, const float *restrict key, const float *restrict value,
                           const float *restrict q, float *restrict y, size_t K, size_t V)
{
    memset(y, 0, 4 * V);
    for (size_t k = 0; k < K; k++) {
        float x = key[k], z = q[k];
        for (size_t v = 0; v < V; v++) {
            float s = S[k * V + v] + x * value[v];
            S[k * V + v] = s;
            y[v] = y[v] + z * s;
        }
    }
}

/* A block of columns of a state: N vectors side by side, of which the first `width` numbers are there. */
#define WIDE 4
static inline __attribute__((always_inline)) void load(Vec *to, const float *from, size_t N, size_t width)
{
    if (width < N * W) memset(to, 0, N * sizeof(Vec));
    memcpy(to, from, 4 * width);
}

/* The whole sequence of one head for a block of columns: the columns know nothing of each other, and the block's states
 * stay in the first-level cache. It does what decay_state and write_and_read do, number for number. */
static inline __attribute__((always_inline)) void scan_block(
    size_t N, size_t width, const float *decay, const float *key, const float *value, const float *erase,
    const float *erased, const float *query, const float *initial, float *y, float *end, float *before, size_t L, size_t H,
    size_t G, size_t K, size_t V, size_t own, size_t chunk, Vec *restrict S)
{
    for (size_t k = 0; k < K; k++) load(S + k * N, initial + k * V, N, width);
    for (size_t t = 0; t < L; t++) {
        const float *a = decay + t * H * (own ? K : 1), *x = key + t * G * K, *z = query + t * G * K;
        Vec write[WIDE], read[WIDE], gone[WIDE];
        if (before && t % chunk == 0)
            for (size_t k = 0; k < K; k++) memcpy(before + (t / chunk * K + k) * V, S + k * N, 4 * width);
        load(write, value + t * H * V, N, width);
        for (size_t n = 0; n < N; n++) read[n] = gone[n] = (Vec){0};
        if (erase) {
            const float *p = erase + t * H * K, *r = erased + t * H * K;
            for (size_t k = 0; k < K; k++)
                for (size_t n = 0; n < N; n++) {
                    Vec kept = a[own ? k : 0] * S[k * N + n];
                    S[k * N + n] = kept;
                    gone[n] = gone[n] + r[k] * kept;
                }
            for (size_t k = 0; k < K; k++)
                for (size_t n = 0; n < N; n++) {
                    Vec s = (S[k * N + n] - p[k] * gone[n]) + x[k] * write[n];
                    S[k * N + n] = s;
                    read[n] = read[n] + z[k] * s;
                }
        } else {
            for (size_t k = 0; k < K; k++)
                for (size_t n = 0; n < N; n++) {
                    Vec s = a[own ? k : 0] * S[k * N + n] + x[k] * write[n];
                    S[k * N + n] = s;
                    read[n] = read[n] + z[k] * s;
                }
        }
        memcpy(y + t * H * V, read, 4 * width);
    }
    for (size_t k = 0; k < K; k++) memcpy(end + k * V, S + k * N, 4 * width);
}

void matrix_scan(const float *decay, const float *key, const float *value, const float *erase, const float *erased,
                 const float *query, const float *initial, float *y, float *end, float *before, size_t L, size_t H,
                 size_t G, size_t K, size_t V, size_t own, size_t chunk, size_t first, size_t last, float *work)
{
    size_t chunks = (L + chunk - 1) / chunk;
    for (size_t pair = first; pair < last; pair++) {
        size_t b = pair / H, h = pair % H, g = (b * L * G + h / (H / G)) * K, at = b * L * H + h;
        const float *p = erase ? erase + at * K : NULL, *r = erased ? erased + at * K : NULL;
        for (size_t v = 0; v < V;) {
            size_t from = pair * K * V + v, width = V - v < W ? V - v : W;
            float *kept = before ? before + pair * chunks * K * V + v : NULL;
            if (V - v >= WIDE * W) {
                scan_block(WIDE, WIDE * W, decay + at * (own ? K : 1), key + g, value + at * V + v, p, r, query + g,
                           initial + from, y + at * V + v, end + from, kept, L, H, G, K, V, own, chunk, (Vec *)work);
                width = WIDE * W;
            } else {
                scan_block(1, width, decay + at * (own ? K : 1), key + g, value + at * V + v, p, r, query + g,
                           initial + from, y + at * V + v, end + from, kept, L, H, G, K, V, own, chunk, (Vec *)work);
            }
            v += width;
        }
    }
}

/* The gradients of matrix_scan. The states of a chunk are made again from the one before it; work holds them, the slope
 * of the state, and two rows. dS, the slope of the last state, becomes that of the initial one. */
void matrix_back(const float *decay, const float *key, const float *value, const float *erase, const float *erased,
                 const float *query, const float *before, const float *dy, float *ddecay, float *dkey, float *dvalue,
                 float *derase, float *derased, float *dquery, float *dS, size_t L, size_t H, size_t G, size_t K,
                 size_t V, size_t own, size_t chunk, size_t first, size_t last, float *work)
{
    size_t size = K * V, chunks = (L + chunk - 1) / chunk;
    float *states = work, *row = work + (chunk + 1) * size, *gone = row + V, *unread = gone + V;
    for (size_t pair = first; pair < last; pair++) {
        size_t b = pair / H, h = pair % H;
        float *restrict slopes = dS + pair * size;
        for (size_t c = chunks; c-- > 0;) {
            size_t begin = c * chunk, end = begin + chunk < L ? begin + chunk : L;
            memcpy(states, before + (pair * chunks + c) * size, 4 * size);
            for (size_t t = begin; t < end; t++) {
                size_t at = (b * L + t) * H + h;
                float *S = states + (t - begin + 1) * size;
                memcpy(S, S - size, 4 * size);
                decay_state(S, decay + (own ? at * K : at), own, erase ? erase + at * K : NULL,
                            erased ? erased + at * K : NULL, gone, K, V);
                write_and_read(S, key + at * K, value + at * V, query + at * K, unread, K, V);
            }
            for (size_t t = end; t-- > begin;) {
                size_t at = (b * L + t) * H + h;
                const float *restrict S = states + (t - begin + 1) * size, *restrict past = S - size;
                const float *restrict q = query + at * K, *restrict k = key + at * K, *restrict v = value + at * V;
                const float *restrict a = decay + (own ? at * K : at), *restrict slope = dy + at * V;
                float *restrict dv = dvalue + at * V;
                memset(dv, 0, 4 * V);
                memset(row, 0, 4 * V);
                memset(gone, 0, 4 * V);
                for (size_t i = 0; i < K; i++) {
                    float x = q[i], z = k[i];
                    dquery[at * K + i] = dot(S + i * V, slope, V);
                    for (size_t j = 0; j < V; j++) {
                        float g = slopes[i * V + j] + x * slope[j];
                        slopes[i * V + j] = g;
                        dv[j] += z * g;
                    }
                    dkey[at * K + i] = dot(slopes + i * V, v, V);
                }
                if (erase) {
                    const float *restrict p = erase + at * K, *restrict r = erased + at * K;
                    for (size_t i = 0; i < K; i++) {
                        float x = p[i], y = r[i] * a[own ? i : 0];
                        for (size_t j = 0; j < V; j++) {
                            row[j] += x * slopes[i * V + j];
                            gone[j] += y * past[i * V + j];
                        }
                    }
                    for (size_t i = 0; i < K; i++) {
                        float x = r[i];
                        derase[at * K + i] = -dot(slopes + i * V, gone, V);
                        derased[at * K + i] = -dot(past + i * V, row, V) * a[own ? i : 0];
                        for (size_t j = 0; j < V; j++) slopes[i * V + j] -= x * row[j];
                    }
                }
                float all = 0;
                for (size_t i = 0; i < K; i++) {
                    float da = dot(past + i * V, slopes + i * V, V), x = a[own ? i : 0];
                    for (size_t j = 0; j < V; j++) slopes[i * V + j] *= x;
                    if (own) ddecay[at * K + i] = da;
                    all += da;
                }
                if (!own) ddecay[at] = all;
            }
        }
    }
}

void matrix_decayed(const float *decay, const float *erase, const float *erased, const float *state, float *out, size_t K,
                    size_t V, size_t own, size_t first, size_t last, float *work)
{
    for (size_t pair = first; pair < last; pair++) {
        float *S = out + pair * K * V;
        memcpy(S, state + pair * K * V, 4 * K * V);
        decay_state(S, decay + (own ? pair * K : pair), own, erase ? erase + pair * K : NULL,
                    erased ? erased + pair * K : NULL, work, K, V);
    }
}

void matrix_read(const float *query, const float *state, float *y, size_t K, size_t V, size_t first, size_t last)
{
    for (size_t pair = first; pair < last; pair++) {
        const float *restrict S = state + pair * K * V, *q = query + pair * K;
        float *restrict to = y + pair * V;
        memset(to, 0, 4 * V);
        for (size_t k = 0; k < K; k++)
            for (size_t v = 0; v < V; v++) to[v] = to[v] + q[k] * S[k * V + v];
    }
}
