/* The recurrence of matrix memories in float32, a head at a time: its state stays in the cache.
 *
 * Arrays are contiguous: decay [B, L, H] or, where keys have decays of their own, [B, L, H, K]; key, query, erase and
 * erased [B, L, H, K]; value and y [B, L, H, V]; states [B, H, K, V]. Work is cut into (row, head) pairs; a call does the
 * pairs first .. last - 1. Every operation is elementwise over V and sequential over K and L, and none fuses a product
 * with a sum: a sequence in pieces, or one step after another, comes out in the same bits.
 */
#include <stddef.h>
#include <string.h>

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
                 const float *query, const float *initial, float *y, float *end, size_t L, size_t H, size_t K, size_t V,
                 size_t own, size_t first, size_t last, float *work)
{
    float *S = work, *gone = work + K * V;
    for (size_t pair = first; pair < last; pair++) {
        size_t b = pair / H, h = pair % H;
        memcpy(S, initial + pair * K * V, 4 * K * V);
        for (size_t t = 0; t < L; t++) {
            size_t at = (b * L + t) * H + h;
            decay_state(S, decay + (own ? at * K : at), own, erase ? erase + at * K : NULL,
                        erased ? erased + at * K : NULL, gone, K, V);
            write_and_read(S, key + at * K, value + at * V, query + at * K, y + at * V, K, V);
        }
        memcpy(end + pair * K * V, S, 4 * K * V);
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
