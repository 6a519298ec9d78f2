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

void matrix_scan(const float *decay, const float *key, const float *value, const float *erase, const float *erased,
                 const float *query, const float *initial, float *y, float *end, float *before, size_t L, size_t H,
                 size_t K, size_t V, size_t own, size_t chunk, size_t first, size_t last, float *work)
{
    float *S = work, *gone = work + K * V;
    size_t chunks = (L + chunk - 1) / chunk;
    for (size_t pair = first; pair < last; pair++) {
        size_t b = pair / H, h = pair % H;
        memcpy(S, initial + pair * K * V, 4 * K * V);
        for (size_t t = 0; t < L; t++) {
            size_t at = (b * L + t) * H + h;
            if (before && t % chunk == 0) memcpy(before + (pair * chunks + t / chunk) * K * V, S, 4 * K * V);
            decay_state(S, decay + (own ? at * K : at), own, erase ? erase + at * K : NULL,
                        erased ? erased + at * K : NULL, gone, K, V);
            write_and_read(S, key + at * K, value + at * V, query + at * K, y + at * V, K, V);
        }
        memcpy(end + pair * K * V, S, 4 * K * V);
    }
}

/* The gradients of matrix_scan. The states of a chunk are made again from the one before it; work holds them, the slope
 * of the state, and two rows. dS, the slope of the last state, becomes that of the initial one. */
void matrix_back(const float *decay, const float *key, const float *value, const float *erase, const float *erased,
                 const float *query, const float *before, const float *dy, float *ddecay, float *dkey, float *dvalue,
                 float *derase, float *derased, float *dquery, float *dS, size_t L, size_t H, size_t K, size_t V,
                 size_t own, size_t chunk, size_t first, size_t last, float *work)
{
    size_t size = K * V, chunks = (L + chunk - 1) / chunk;
    float *states = work, *row = work + (chunk + 1) * size, *gone = row + V, *unread = gone + V;
    for (size_t pair = first; pair < last; pair++) {
        size_t b = pair / H, h = pair % H;
        float *restrict G = dS + pair * size;
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
                        float g = G[i * V + j] + x * slope[j];
                        G[i * V + j] = g;
                        dv[j] += z * g;
                    }
                    dkey[at * K + i] = dot(G + i * V, v, V);
                }
                if (erase) {
                    const float *restrict p = erase + at * K, *restrict r = erased + at * K;
                    for (size_t i = 0; i < K; i++) {
                        float x = p[i], y = r[i] * a[own ? i : 0];
                        for (size_t j = 0; j < V; j++) {
                            row[j] += x * G[i * V + j];
                            gone[j] += y * past[i * V + j];
                        }
                    }
                    for (size_t i = 0; i < K; i++) {
                        float x = r[i];
                        derase[at * K + i] = -dot(G + i * V, gone, V);
                        derased[at * K + i] = -dot(past + i * V, row, V) * a[own ? i : 0];
                        for (size_t j = 0; j < V; j++) G[i * V + j] -= x * row[j];
                    }
                }
                float all = 0;
                for (size_t i = 0; i < K; i++) {
                    float da = dot(past + i * V, G + i * V, V), x = a[own ? i : 0];
                    for (size_t j = 0; j < V; j++) G[i * V + j] *= x;
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
