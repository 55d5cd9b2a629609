/* Trains small MLPs on one CPU core: each call takes several minibatches of several trials.
 *
 * Compiled on the user's machine by kernel.py, once with REAL float and once with REAL double
 * (INDEX is an integer of the same size); called by trials.py. Axes: B samples of a minibatch,
 * F features, H units, C classes. Matrix products of this size are slow in a library. Three things
 * make them fast here:
 *
 * - All products use one tile: MR rows by NV vectors of results stay in registers.
 * - Activations are stored as (unit, sample) in panels of PANEL samples for the forward pass, and
 *   as (sample, unit) for the gradients of the weights, so every product reads whole vectors.
 * - Each piece of a gradient goes into its parameters while it is in the cache. Only clipping
 *   writes the whole gradient to memory.
 *
 * A layer's parameters are its weights (H_out, stride(H_in)), padded with zeros, then its biases.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#define INDEX int32_t
#endif
typedef REAL real;

#if defined(__AVX512F__) /* 32 registers of 64 bytes: 24 results, 4 inputs, 1 factor */
#define VECTOR_BYTES 64
#define NV 4
#define MR 6
#elif defined(__AVX__) /* 16 of 32 bytes: 12 results, 2 inputs, 1 factor */
#define VECTOR_BYTES 32
#define NV 2
#define MR 6
#elif defined(__aarch64__) /* 32 of 16 bytes */
#define VECTOR_BYTES 16
#define NV 4
#define MR 6
#else
#define VECTOR_BYTES 16
#define NV 2
#define MR 6
#endif

#define VL ((int)(VECTOR_BYTES / sizeof(real))) /* values per vector */
#define PANEL 64      /* samples per panel: a multiple of every tile's width */
#define STRIDE 16     /* rows of weights are padded to multiples of it; a multiple of every VL */
#define MOST_LAYERS 8 /* must match kernel.py */
#define CHUNK 1024    /* features at a time: 64 samples of them fit into the L2 cache */

typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
#define INLINE static inline __attribute__((always_inline))

enum { RELU, LEAKY_RELU, TANH, SILU, ELU, GELU };
enum { SGD, ADAM, ADAMW, RMSPROP, NADAM };
#define MOMENTUM_DECAY 4e-3 /* torch's default for NAdam */
enum { UINT8, FLOAT32, FLOAT64 };

/* kernel.Trial must have the same fields in the same order. */
typedef struct {
    const int64_t *widths;    /* F, units of the hidden layers, C: (n_layers + 1,) */
    real *params, *states[3]; /* layer by layer, in the layout at the top of the file */
    const double *rates;      /* learning rate of each step of this call */
    const uint8_t *const *kept; /* dropout masks (step, unit, sample) by hidden layer, or NULL */
    int64_t n_layers, activation, rule, is_nesterov, is_centered;
    int64_t n_steps; /* taken before this call, in all epochs */
    double weight_decay, momentum, dampening, beta1, beta2, eps;
    double carried; /* the optimizer's scalar state: NAdam's product of momenta */
    double clip_norm; /* infinite: no clipping */
    double dropout;
    double loss;       /* out: added up over samples */
    int64_t n_correct; /* out: added up over samples */
    uint8_t *hits;     /* out: whether each evaluated sample is correct; or NULL */
    real *losses;      /* out: the cross entropy of each evaluated sample; or NULL */
} trial;

/* kernel.CBatches must have the same fields in the same order. */
typedef struct {
    const void *x;        /* (n, F) of `kind` */
    const int64_t *y;     /* (n,), each in [0, C) */
    const int64_t *order; /* rows of x by position, or NULL: in storage order */
    int64_t kind, n_samples, n_features, n_classes, batch_size;
    double mean, std;
} batches;

static int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static int64_t stride(int64_t n) { return round_up(n, STRIDE); }

static real exp_of(real x) { return sizeof(real) == 4 ? (real)expf((float)x) : (real)exp(x); }
static real log_of(real x) { return sizeof(real) == 4 ? (real)logf((float)x) : (real)log(x); }
static real erf_of(real x) { return sizeof(real) == 4 ? (real)erff((float)x) : (real)erf(x); }
static real tanh_of(real x) { return sizeof(real) == 4 ? (real)tanhf((float)x) : (real)tanh(x); }
static real expm1_of(real x) { return sizeof(real) == 4 ? (real)expm1f((float)x) : (real)expm1(x); }
static inline real sqrt_of(real x) {
    return sizeof(real) == 4 ? (real)__builtin_sqrtf((float)x) : (real)__builtin_sqrt(x);
}

/* ---- products ------------------------------------------------------------------------------ */

/* c (mr, nv vectors) = sum over k < n_k of a[row, k] b[k, :], plus c if `is_added`, plus bias[row]
 * if given. */
INLINE void tile(const int mr, const int nv, int64_t n_k, const real *restrict a, int64_t a_row,
                 int64_t a_k, const real *restrict b, int64_t b_k, real *restrict c, int64_t c_row,
                 int is_added, const real *restrict bias) {
    vec sum[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < nv; v++) {
            sum[r][v] = (vec){0};
            if (is_added) sum[r][v] = *(const vec *)(c + r * c_row + v * VL);
            if (bias) sum[r][v] += bias[r];
        }
    for (int64_t k = 0; k < n_k; k++) {
        vec in[NV];
        for (int v = 0; v < nv; v++) in[v] = *(const vec *)(b + k * b_k + v * VL);
        for (int r = 0; r < mr; r++) {
            /* Broadcasts by x - 0, a no-op to the compiler. x + 0 is none: it turns -0 into 0. */
            const vec factor = a[r * a_row + k * a_k] - (vec){0};
            for (int v = 0; v < nv; v++) sum[r][v] += factor * in[v];
        }
    }
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < nv; v++) *(vec *)(c + r * c_row + v * VL) = sum[r][v];
}

#define CASE(rows, vectors) \
    case (rows): tile(rows, vectors, n_k, a, a_row, a_k, b, b_k, c, c_row, is_added, bias); return;
#define ROWS(vectors)                                                                        \
    switch (mr) {                                                                            \
        CASE(1, vectors) CASE(2, vectors) CASE(3, vectors) CASE(4, vectors) CASE(5, vectors) \
        CASE(6, vectors)                                                                     \
    }
/* Constant sizes: the compiler unrolls the loops over rows and vectors for each of them. */
INLINE void tile_of_size(int mr, int nv, int64_t n_k, const real *a, int64_t a_row, int64_t a_k,
                         const real *b, int64_t b_k, real *c, int64_t c_row, int is_added,
                         const real *bias) {
    switch (nv) {
    case 1: ROWS(1) return;
    case 2: ROWS(2) return;
#if NV > 2
    case 3: ROWS(3) return;
    case 4: ROWS(4) return;
#endif
    }
}

/* c = a b, with rows of `a` a_row apart: for the forward pass and gradients of weights. */
static __attribute__((noinline)) void multiply(int mr, int nv, int64_t n_k, const real *a,
                                               int64_t a_row, const real *b, int64_t b_k, real *c,
                                               int64_t c_row, int is_added, const real *bias) {
    for (int v = 0; v < nv; v += NV)
        tile_of_size(mr, (int)min_of(NV, nv - v), n_k, a, a_row, 1, b + v * VL, b_k, c + v * VL,
                     c_row, is_added, bias);
}

/* c = a^T b, with rows of `a` a_k apart: for gradients of inputs. */
static __attribute__((noinline)) void multiply_transposed(int mr, int nv, int64_t n_k,
                                                          const real *a, int64_t a_k,
                                                          const real *b, int64_t b_k, real *c,
                                                          int64_t c_row) {
    for (int v = 0; v < nv; v += NV)
        tile_of_size(mr, (int)min_of(NV, nv - v), n_k, a, 1, a_k, b + v * VL, b_k, c + v * VL,
                     c_row, 0, NULL);
}

#if defined(__GNUC__) && !defined(__clang__) && !defined(PLAIN)
typedef INDEX mask __attribute__((vector_size(VECTOR_BYTES)));

/* One stage of a transposition in registers: rows `half` apart swap their off-diagonal halves. */
INLINE void swap_halves(vec *rows, const int half) {
    if (half >= VL) return;
    mask low, high;
    for (int j = 0; j < VL; j++) {
        low[j] = (INDEX)(j & half ? VL + j - half : j);
        high[j] = (INDEX)(j & half ? VL + j : j + half);
    }
    for (int i = 0; i < VL; i++) {
        if (i & half) continue;
        const vec a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + half] = __builtin_shuffle(a, b, high);
    }
}

/* Transposes a square of VL by VL values. */
static void transpose_square(const real *in, int64_t in_row, real *out, int64_t out_row) {
    vec rows[VL];
    for (int i = 0; i < VL; i++) rows[i] = *(const vec *)(in + i * in_row);
    swap_halves(rows, 8), swap_halves(rows, 4), swap_halves(rows, 2), swap_halves(rows, 1);
    for (int i = 0; i < VL; i++) *(vec *)(out + i * out_row) = rows[i];
}
#else
static void transpose_square(const real *in, int64_t in_row, real *out, int64_t out_row) {
    for (int64_t i = 0; i < VL; i++)
        for (int64_t j = 0; j < VL; j++) out[i * out_row + j] = in[j * in_row + i];
}
#endif

/* out (n_columns, n_to) = transpose of in (n_rows, n_columns); columns from n_rows on are 0. */
static void transpose(const real *in, int64_t in_row, int64_t n_rows, int64_t n_columns,
                      real *out, int64_t out_row, int64_t n_to) {
    for (int64_t i = 0; i < n_to; i += VL)
        for (int64_t j = 0; j < n_columns; j += VL) {
            if (i + VL <= n_rows && j + VL <= n_columns) {
                transpose_square(in + i * in_row + j, in_row, out + j * out_row + i, out_row);
                continue;
            }
            for (int64_t k = j; k < min_of(j + VL, n_columns); k++)
                for (int64_t r = i; r < min_of(i + VL, n_to); r++)
                    out[k * out_row + r] = r < n_rows ? in[r * in_row + k] : 0;
        }
}

/* ---- activations --------------------------------------------------------------------------- */

/* Replaces z by its activation. `slope` gets the derivative, except for ReLU and leaky ReLU, as it
 * follows from the activation's sign. NaN stays NaN. */
static void activate(int64_t activation, real *restrict z, real *restrict slope, int64_t n) {
    switch (activation) {
    case RELU:
        for (int64_t i = 0; i < n; i++) z[i] = z[i] < 0 ? 0 : z[i];
        return;
    case LEAKY_RELU:
        for (int64_t i = 0; i < n; i++) z[i] = z[i] < 0 ? z[i] * (real)0.01 : z[i];
        return;
    case TANH:
        for (int64_t i = 0; i < n; i++) {
            z[i] = tanh_of(z[i]);
            slope[i] = 1 - z[i] * z[i];
        }
        return;
    case SILU:
        for (int64_t i = 0; i < n; i++) {
            const real share = 1 / (1 + exp_of(-z[i]));
            slope[i] = share * (1 + z[i] * (1 - share));
            z[i] *= share;
        }
        return;
    case ELU:
        for (int64_t i = 0; i < n; i++) {
            const real below = expm1_of(z[i] < 0 ? z[i] : 0);
            slope[i] = z[i] > 0 ? 1 : below + 1;
            z[i] = z[i] > 0 ? z[i] : z[i] < 0 ? below : z[i];
        }
        return;
    case GELU:
        for (int64_t i = 0; i < n; i++) {
            const real below = (real)0.5 * (1 + erf_of(z[i] * (real)0.70710678118654752440));
            const real density =
                (real)0.39894228040143267794 * exp_of((real)-0.5 * z[i] * z[i]);
            slope[i] = below + z[i] * density;
            z[i] *= below;
        }
    }
}

/* Multiplies d by the derivative at the activations `a`. */
static void activation_backward(int64_t activation, const real *restrict a,
                                const real *restrict slope, real *restrict d, int64_t n) {
    if (activation == RELU)
        for (int64_t i = 0; i < n; i++) d[i] = a[i] <= 0 ? 0 : d[i];
    else if (activation == LEAKY_RELU)
        for (int64_t i = 0; i < n; i++) d[i] = a[i] <= 0 ? d[i] * (real)0.01 : d[i];
    else
        for (int64_t i = 0; i < n; i++) d[i] *= slope[i];
}

/* ---- optimizers ---------------------------------------------------------------------------- */

/* Coefficients of one optimizer step of a trial. */
typedef struct {
    const trial *of;
    real lr, decay, unit_scale; /* unit_scale: 1 / sqrt(bias correction of second moments) */
    int is_first;
    real mean_lr; /* NAdam: learning rate of the first moment; `lr` is the gradient's */
} coefficients;

/* NAdam's momentum of step `n`, from 1 (Dozat, 2016). */
static double nadam_momentum(const trial *t, double n) {
    return t->beta1 * (1 - 0.5 * pow(0.96, n * MOMENTUM_DECAY));
}

static coefficients coefficients_of(trial *t, int64_t step) {
    const double n = (double)(t->n_steps + step + 1), lr = t->rates[step];
    coefficients p = {t, (real)lr, (real)t->weight_decay, 1, t->n_steps + step == 0, 0};
    if (t->rule == NADAM) { /* carried: product of the momenta of all steps so far */
        const double now = nadam_momentum(t, n), next = nadam_momentum(t, n + 1);
        t->carried *= now;
        p.lr = (real)(lr * (1 - now) / (1 - t->carried));
        p.mean_lr = (real)(lr * next / (1 - t->carried * next));
        p.unit_scale = (real)(1 / sqrt(1 - pow(t->beta2, n)));
    }
    if (t->rule == ADAM || t->rule == ADAMW) {
        p.lr = (real)(lr / (1 - pow(t->beta1, n)));
        p.unit_scale = (real)(1 / sqrt(1 - pow(t->beta2, n)));
    }
    if (t->rule == ADAMW) p.decay = (real)(1 - lr * t->weight_decay);
    return p;
}

static void sgd_step(const coefficients *p, real *restrict w, real *restrict buffer,
                     const real *restrict grads, int64_t n) {
    const trial *t = p->of;
    const real momentum = (real)t->momentum, fresh = p->is_first ? 1 : (real)(1 - t->dampening);
    const real kept = p->is_first ? 0 : momentum;
    if (t->momentum == 0) {
        for (int64_t i = 0; i < n; i++) w[i] -= p->lr * (grads[i] + p->decay * w[i]);
        return;
    }
    const int is_nesterov = t->is_nesterov != 0;
    for (int64_t i = 0; i < n; i++) {
        const real g = grads[i] + p->decay * w[i];
        buffer[i] = kept * buffer[i] + fresh * g;
        w[i] -= p->lr * (is_nesterov ? g + momentum * buffer[i] : buffer[i]);
    }
}

static void adam_step(const coefficients *p, real *restrict w, real *restrict m, real *restrict v,
                      const real *restrict grads, int64_t n) {
    const trial *t = p->of;
    const real fresh = (real)(1 - t->beta1), kept2 = (real)t->beta2, fresh2 = (real)(1 - t->beta2);
    const real eps = (real)t->eps, scale = t->rule == ADAMW ? p->decay : 1;
    const real decay = t->rule == ADAMW ? 0 : p->decay;
    for (int64_t i = 0; i < n; i++) {
        const real g = grads[i] + decay * w[i];
        m[i] += fresh * (g - m[i]);
        v[i] = kept2 * v[i] + fresh2 * g * g;
        w[i] = scale * w[i] - p->lr * m[i] / (sqrt_of(v[i]) * p->unit_scale + eps);
    }
}

static void nadam_step(const coefficients *p, real *restrict w, real *restrict m, real *restrict v,
                       const real *restrict grads, int64_t n) {
    const trial *t = p->of;
    const real fresh = (real)(1 - t->beta1), kept2 = (real)t->beta2, fresh2 = (real)(1 - t->beta2);
    const real eps = (real)t->eps;
    for (int64_t i = 0; i < n; i++) {
        const real g = grads[i] + p->decay * w[i];
        m[i] += fresh * (g - m[i]);
        v[i] = kept2 * v[i] + fresh2 * g * g;
        w[i] -= (p->lr * g + p->mean_lr * m[i]) / (sqrt_of(v[i]) * p->unit_scale + eps);
    }
}

/* States: squares, momentum buffer, means, in the order of optimizers.py. */
static void rmsprop_step(const coefficients *p, real *restrict w, real *restrict squares,
                         real *restrict buffer, real *restrict means, const real *restrict grads,
                         int64_t n) {
    const trial *t = p->of;
    const real kept = (real)t->beta2, fresh = (real)(1 - t->beta2), eps = (real)t->eps;
    const real momentum = (real)t->momentum;
    if (t->momentum == 0 && !t->is_centered) {
        for (int64_t i = 0; i < n; i++) {
            const real g = grads[i] + p->decay * w[i];
            squares[i] = kept * squares[i] + fresh * g * g;
            w[i] -= p->lr * g / (sqrt_of(squares[i]) + eps);
        }
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const real g = grads[i] + p->decay * w[i];
        squares[i] = kept * squares[i] + fresh * g * g;
        real spread = squares[i];
        if (t->is_centered) {
            means[i] += fresh * (g - means[i]);
            spread -= means[i] * means[i];
        }
        real change = g / (sqrt_of(spread) + eps);
        if (t->momentum != 0) change = buffer[i] = momentum * buffer[i] + change;
        w[i] -= p->lr * change;
    }
}

/* One optimizer step of the `n` parameters from `offset` on. */
static void update_params(const coefficients *p, int64_t offset, const real *grads, int64_t n) {
    const trial *t = p->of;
    real *w = t->params + offset, *s[3];
    for (int k = 0; k < 3; k++) s[k] = t->states[k] ? t->states[k] + offset : NULL;
    if (t->rule == SGD) sgd_step(p, w, s[0], grads, n);
    else if (t->rule == NADAM) nadam_step(p, w, s[0], s[1], grads, n);
    else if (t->rule == RMSPROP) rmsprop_step(p, w, s[0], s[1], s[2], grads, n);
    else adam_step(p, w, s[0], s[1], grads, n);
}

/* ---- one trial's pass over a minibatch ----------------------------------------------------- */

/* Scratch memory of a call, reused by its trials in turn. */
typedef struct {
    real *x, *x_t; /* inputs (B, stride(F)) and by panel (F, PANEL) */
    real *a, *slope, *a_t, *d, *d_next, *g, *all_g;
} workspace;

/* Positions of a trial's layers in the workspace and its parameters; index 0 is the inputs. */
typedef struct {
    const trial *of;
    int64_t n_samples, n_panels;
    int64_t widths[MOST_LAYERS + 1], offsets[MOST_LAYERS + 1], n_params;
    real *a[MOST_LAYERS + 1];     /* by panel (H, PANEL) */
    real *slope[MOST_LAYERS + 1]; /* the same */
    real *a_t[MOST_LAYERS + 1];   /* (B, stride(H)) */
} layout;

static int64_t panel_width(const layout *at, int64_t panel) {
    return min_of(PANEL, at->n_samples - panel * PANEL);
}

static layout layout_of(const trial *t, const workspace *s, int64_t n_samples) {
    layout at = {.of = t, .n_samples = n_samples, .n_panels = round_up(n_samples, PANEL) / PANEL};
    const int64_t n_rows = at.n_panels * PANEL;
    at.a[0] = s->x_t, at.a_t[0] = s->x, at.widths[0] = t->widths[0];
    int64_t n_units = 0, n_columns = 0;
    for (int64_t l = 1; l <= t->n_layers; l++) {
        at.widths[l] = t->widths[l];
        at.offsets[l] = at.n_params;
        at.n_params += at.widths[l] * stride(at.widths[l - 1]) + stride(at.widths[l]);
        at.a[l] = s->a + n_units * n_rows, at.slope[l] = s->slope + n_units * n_rows;
        at.a_t[l] = s->a_t + n_columns * n_rows;
        n_units += at.widths[l], n_columns += stride(at.widths[l]);
    }
    return at;
}

/* Multiplies values by dropout's mask: 1 / (1 - p) for a kept unit, else 0. */
static void apply_dropout(const trial *t, const uint8_t *kept, int64_t n_samples, int64_t panel,
                          int64_t n_units, real *values) {
    const real scale = (real)(1 / (1 - t->dropout));
    const int64_t begin = panel * PANEL, n = min_of(PANEL, n_samples - begin);
    for (int64_t u = 0; u < n_units; u++)
        for (int64_t i = 0; i < n; i++)
            values[u * PANEL + i] *= kept[u * n_samples + begin + i] ? scale : 0;
}

/* Dropout's kept units of hidden layer `l` (from 1) in one step; NULL: no dropout. */
static const uint8_t *dropout_mask(const layout *at, int64_t l, int64_t step, int64_t batch_size) {
    if (!at->of->kept) return NULL;
    return at->of->kept[l - 1] + step * at->widths[l] * batch_size;
}

/* Forward pass; a step below 0 is an evaluation: no dropout, no (sample, unit) copies. */
static void forward(const layout *at, const real *params, int64_t step, int64_t batch_size) {
    const int64_t n_layers = at->of->n_layers;
    for (int64_t l = 1; l <= n_layers; l++) {
        const int64_t n_in = at->widths[l - 1], n_out = at->widths[l], row = stride(n_in);
        const real *w = params + at->offsets[l], *bias = w + n_out * row;
        for (int64_t p = 0; p < at->n_panels; p++) {
            const int64_t width = panel_width(at, p);
            const int nv = (int)(round_up(width, VL) / VL);
            const real *in = at->a[l - 1] + p * n_in * PANEL;
            real *out = at->a[l] + p * n_out * PANEL;
            for (int64_t k = 0; k < n_in; k += CHUNK)
                for (int64_t i = 0; i < n_out; i += MR)
                    multiply((int)min_of(MR, n_out - i), nv, min_of(CHUNK, n_in - k),
                             w + i * row + k, row, in + k * PANEL, PANEL, out + i * PANEL, PANEL,
                             k > 0, k ? NULL : bias + i);
            if (l == n_layers) continue;
            activate(at->of->activation, out, at->slope[l] + p * n_out * PANEL, n_out * PANEL);
            const uint8_t *kept = step < 0 ? NULL : dropout_mask(at, l, step, batch_size);
            if (kept) apply_dropout(at->of, kept, at->n_samples, p, n_out, out);
            if (step >= 0)
                transpose(out, PANEL, n_out, width, at->a_t[l] + p * PANEL * stride(n_out),
                          stride(n_out), stride(n_out));
        }
    }
}

/* Adds up the logits' cross entropies and correct samples in `t`; `d` (by panel (C, PANEL)), if
 * given, gets the gradient of the mean cross entropy. Without `rows` the samples are those from
 * number `first` on, of which `t` also gets each. */
static void cross_entropy(const layout *at, const int64_t *y, const int64_t *rows, int64_t first,
                          trial *t, real *d) {
    const int64_t n_classes = at->widths[t->n_layers];
    for (int64_t p = 0; p < at->n_panels; p++) {
        const real *z = at->a[t->n_layers] + p * n_classes * PANEL;
        real *own = d ? d + p * n_classes * PANEL : NULL;
        const int64_t width = panel_width(at, p);
        for (int64_t i = 0; i < width; i++) {
            const int64_t sample = p * PANEL + i, label = y[rows ? rows[sample] : sample];
            real highest = z[i], sum = 0;
            int64_t chosen = 0;
            for (int64_t c = 1; c < n_classes; c++)
                if (z[c * PANEL + i] > highest) highest = z[c * PANEL + i], chosen = c;
            for (int64_t c = 0; c < n_classes; c++) {
                const real e = exp_of(z[c * PANEL + i] - highest);
                if (own) own[c * PANEL + i] = e;
                sum += e;
            }
            const real loss = -(z[label * PANEL + i] - highest - log_of(sum));
            t->loss += (double)loss;
            t->n_correct += chosen == label;
            if (!rows && t->hits) t->hits[first + sample] = chosen == label;
            if (!rows && t->losses) t->losses[first + sample] = loss;
            if (!own) continue;
            for (int64_t c = 0; c < n_classes; c++)
                own[c * PANEL + i] =
                    (own[c * PANEL + i] / sum - (c == label)) / (real)at->n_samples;
        }
        for (int64_t c = 0; own && c < n_classes; c++)
            for (int64_t i = width; i < PANEL; i++) own[c * PANEL + i] = 0;
    }
}

/* Gradients of layer `l`'s inputs; must run before its weights change. */
static void input_gradients(const layout *at, int64_t l, const workspace *s, int64_t step,
                            int64_t batch_size) {
    const int64_t n_in = at->widths[l - 1], n_out = at->widths[l], row = stride(n_in);
    const real *w = at->of->params + at->offsets[l];
    const uint8_t *kept = dropout_mask(at, l - 1, step, batch_size);
    for (int64_t p = 0; p < at->n_panels; p++) {
        const int nv = (int)(round_up(panel_width(at, p), VL) / VL);
        real *out = s->d_next + p * n_in * PANEL;
        for (int64_t i = 0; i < n_in; i += MR)
            multiply_transposed((int)min_of(MR, n_in - i), nv, n_out, w + i, row,
                                s->d + p * n_out * PANEL, PANEL, out + i * PANEL, PANEL);
        if (kept) apply_dropout(at->of, kept, at->n_samples, p, n_in, out);
        const int64_t begin = p * n_in * PANEL;
        activation_backward(at->of->activation, at->a[l - 1] + begin, at->slope[l - 1] + begin,
                            out, n_in * PANEL);
    }
}

/* Gradients of `mr` rows and `n` columns of layer `l`'s weights, from row `i`, column `k` on. */
static void weight_gradients(const layout *at, int64_t l, const workspace *s, int64_t i, int mr,
                             int64_t k, int64_t n, real *g, int64_t g_row) {
    const int64_t n_out = at->widths[l], row = stride(at->widths[l - 1]);
    for (int64_t c = 0; c < n; c += PANEL)
        for (int64_t p = 0; p < at->n_panels; p++)
            multiply(mr, (int)(min_of(PANEL, n - c) / VL), panel_width(at, p),
                     s->d + p * n_out * PANEL + i * PANEL, PANEL,
                     at->a_t[l - 1] + p * PANEL * row + k + c, row, g + c, g_row,
                     p > 0, NULL);
}

/* Gradients of layer `l`: applied to its parameters at once, or stored in `all_g` if given. */
static void backward_layer(const layout *at, int64_t l, const workspace *s, const coefficients *p,
                           real *all_g) {
    const int64_t n_out = at->widths[l], row = stride(at->widths[l - 1]), offset = at->offsets[l];
    for (int64_t k = 0; k < row; k += CHUNK)
        for (int64_t i = 0; i < n_out; i += MR) {
            const int mr = (int)min_of(MR, n_out - i);
            const int64_t n = min_of(CHUNK, row - k), begin = offset + i * row + k;
            real *g = all_g ? all_g + begin : s->g;
            const int64_t g_row = all_g ? row : n;
            weight_gradients(at, l, s, i, mr, k, n, g, g_row);
            if (all_g) continue;
            if (n == row) update_params(p, begin, g, mr * row);
            else
                for (int r = 0; r < mr; r++) update_params(p, begin + r * row, g + r * n, n);
        }
    real *g = all_g ? all_g + offset + n_out * row : s->g;
    for (int64_t i = 0; i < n_out; i++) {
        vec sums = {0}; /* whole vectors: values past the last sample are 0 */
        for (int64_t q = 0; q < at->n_panels; q++)
            for (int64_t b = 0; b < panel_width(at, q); b += VL)
                sums += *(const vec *)(s->d + (q * n_out + i) * PANEL + b);
        g[i] = 0;
        for (int v = 0; v < VL; v++) g[i] += sums[v];
    }
    if (!all_g) update_params(p, offset + n_out * row, g, n_out);
}

static int is_clipped(const trial *t) { return !(t->clip_norm >= INFINITY); } /* NaN: yes */

/* The formula of torch.nn.utils.clip_grad_norm_; padding is 0 and adds nothing to the norm. */
static void clip_gradients(real *g, int64_t n, double most_norm) {
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += (double)g[i] * (double)g[i];
    const double factor = most_norm / (sqrt(squares) + 1e-6);
    if (!(factor >= 1)) /* NaN, too */
        for (int64_t i = 0; i < n; i++) g[i] *= (real)factor;
}

static void train_step(trial *t, const batches *data, workspace *s, const int64_t *rows,
                       int64_t n_samples, int64_t step) {
    const layout at = layout_of(t, s, n_samples);
    const coefficients p = coefficients_of(t, step);
    real *all_g = is_clipped(t) ? s->all_g : NULL;
    if (all_g) memset(all_g, 0, sizeof(real) * (size_t)at.n_params);
    forward(&at, t->params, step, data->batch_size);
    cross_entropy(&at, data->y, rows, 0, t, s->d);
    for (int64_t l = t->n_layers; l >= 1; l--) {
        if (l > 1) input_gradients(&at, l, s, step, data->batch_size);
        backward_layer(&at, l, s, &p, all_g);
        real *done = s->d;
        s->d = s->d_next, s->d_next = done;
    }
    if (!all_g) return;
    clip_gradients(all_g, at.n_params, t->clip_norm);
    update_params(&p, 0, all_g, at.n_params);
}

/* ---- calls --------------------------------------------------------------------------------- */

static void *alloc_zeros(int64_t n) {
    const size_t n_bytes = (size_t)round_up(max_of(n, 1) * (int64_t)sizeof(real), 64);
    void *memory = aligned_alloc(64, n_bytes);
    return memory ? memset(memory, 0, n_bytes) : NULL;
}

static void free_workspace(workspace *s) {
    real *all[] = {s->x, s->x_t, s->a, s->slope, s->a_t, s->d, s->d_next, s->g, s->all_g};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
}

/* Allocates memory for minibatches of `n_samples`. Returns 0 if there is not enough. */
static int alloc_workspace(workspace *s, const trial *trials, int64_t n_trials, int64_t n_features,
                           int64_t n_samples) {
    int64_t n_units = 1, n_columns = 1, widest = 1, n_clipped = 1;
    for (int64_t k = 0; k < n_trials; k++) {
        int64_t units = 0, columns = 0, params = 0;
        for (int64_t l = 1; l <= trials[k].n_layers; l++) {
            const int64_t n = trials[k].widths[l];
            units += n, columns += stride(n), widest = max_of(widest, n);
            params += n * stride(trials[k].widths[l - 1]) + stride(n);
        }
        n_units = max_of(n_units, units), n_columns = max_of(n_columns, columns);
        if (is_clipped(trials + k)) n_clipped = max_of(n_clipped, params);
    }
    const int64_t n = round_up(n_samples, PANEL);
    const int64_t n_g = MR * min_of(CHUNK, stride(max_of(n_features, widest)));
    s->x = alloc_zeros(n * stride(n_features)), s->x_t = alloc_zeros(n * n_features);
    s->a = alloc_zeros(n * n_units), s->slope = alloc_zeros(n * n_units);
    s->a_t = alloc_zeros(n * n_columns);
    s->d = alloc_zeros(n * widest), s->d_next = alloc_zeros(n * widest);
    s->g = alloc_zeros(max_of(n_g, stride(widest))), s->all_g = alloc_zeros(n_clipped);
    return s->x && s->x_t && s->a && s->slope && s->a_t && s->d && s->d_next && s->g && s->all_g;
}

#define NORMALISE(type)                                                            \
    for (int64_t f = 0; f < n; f++)                                                \
        out[f] = ((real)((const type *)data->x + row * n)[f] - mean) / deviation;

/* Standardised inputs of a minibatch in both layouts: samples `rows`; NULL: from `first` on. */
static void load_inputs(const batches *data, const int64_t *rows, int64_t first, int64_t n_samples,
                        workspace *s) {
    const int64_t n = data->n_features, to = round_up(n_samples, VL);
    const real mean = (real)data->mean, deviation = (real)data->std;
    for (int64_t i = 0; i < n_samples; i++) {
        const int64_t row = rows ? rows[i] : first + i;
        real *restrict out = s->x + i * stride(n);
        if (data->kind == UINT8) NORMALISE(uint8_t)
        else if (data->kind == FLOAT32) NORMALISE(float)
        else NORMALISE(double)
    }
    for (int64_t i = n_samples; i < to; i++)
        memset(s->x + i * stride(n), 0, sizeof(real) * (size_t)n);
    for (int64_t begin = 0; begin < n_samples; begin += PANEL) {
        const int64_t width = min_of(PANEL, to - begin);
        transpose(s->x + begin * stride(n), stride(n), width, n, s->x_t + begin * n, PANEL, width);
    }
}

/* Trains `n_steps` minibatches from number `first` on. Returns 0, or 1 if memory ran out before
 * any change. */
int sweep_train(trial *trials, int64_t n_trials, const batches *data, int64_t first,
                int64_t n_steps) {
    workspace s = {0};
    const int64_t widest = min_of(data->batch_size, data->n_samples);
    if (!alloc_workspace(&s, trials, n_trials, data->n_features, widest)) {
        free_workspace(&s);
        return 1;
    }
    for (int64_t step = 0; step < n_steps; step++) {
        const int64_t begin = (first + step) * data->batch_size;
        const int64_t n = min_of(data->batch_size, data->n_samples - begin);
        load_inputs(data, data->order + begin, 0, n, &s);
        for (int64_t k = 0; k < n_trials; k++)
            train_step(trials + k, data, &s, data->order + begin, n, step);
    }
    free_workspace(&s);
    return 0;
}

/* Takes optimizer step number `step`, of those that the trials' `rates` are for, with gradients
 * from elsewhere: n_params[k] values from grads[k] on for trial k. Changes clipped gradients. */
int sweep_update(trial *trials, int64_t n_trials, real *const *grads, const int64_t *n_params,
                 int64_t step) {
    for (int64_t k = 0; k < n_trials; k++) {
        const coefficients p = coefficients_of(trials + k, step);
        if (is_clipped(trials + k)) clip_gradients(grads[k], n_params[k], trials[k].clip_norm);
        update_params(&p, 0, grads[k], n_params[k]);
    }
    return 0;
}

/* Adds up loss and correct samples of `n_samples` samples from number `first` on, in storage
 * order. Returns like sweep_train. */
int sweep_evaluate(trial *trials, int64_t n_trials, const batches *data, int64_t first,
                   int64_t n_samples) {
    workspace s = {0};
    if (!alloc_workspace(&s, trials, n_trials, data->n_features, PANEL)) {
        free_workspace(&s);
        return 1;
    }
    for (int64_t begin = first; begin < first + n_samples; begin += PANEL) {
        const int64_t n = min_of(PANEL, first + n_samples - begin);
        load_inputs(data, NULL, begin, n, &s);
        for (int64_t k = 0; k < n_trials; k++) {
            const layout at = layout_of(trials + k, &s, n);
            forward(&at, trials[k].params, -1, 0);
            cross_entropy(&at, data->y + begin, NULL, begin, trials + k, NULL);
        }
    }
    free_workspace(&s);
    return 0;
}
