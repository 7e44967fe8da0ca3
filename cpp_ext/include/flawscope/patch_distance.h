/* Patch distance, Mahalanobis distance and greedy k-centre selection: the kernels of flawscope for C and C++.
 *
 * All matrices are row-major and contiguous. All distances are squared Euclidean (or Mahalanobis) distances.
 * Every function returns FLAWSCOPE_OK or a status that flawscope_status_text() puts into words; none throws.
 * Functions may be called from several threads at once; one bank may be read by all of them.
 * `threads` is the number of CPU threads to use, 0 for all that the process may run on.
 *
 * A query (or patch) with a NaN or infinite component, or with a squared norm of 2^126 or more, has no distance: its
 * results are NaN with row -1. Bank rows and k-centre features beyond that are refused. Below it nothing overflows.
 */
#ifndef FLAWSCOPE_PATCH_DISTANCE_H
#define FLAWSCOPE_PATCH_DISTANCE_H

#include <stdint.h>

#if defined(_WIN32)
#define FLAWSCOPE_API
#else
#define FLAWSCOPE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum flawscope_status {
    FLAWSCOPE_OK = 0,
    FLAWSCOPE_BAD_ARGUMENT = 1, /* a size, a pointer or an option is out of range */
    FLAWSCOPE_NO_MEMORY = 2,
    FLAWSCOPE_CANCELLED = 3,  /* the progress callback asked to stop */
    FLAWSCOPE_NOT_FINITE = 4, /* a bank row, mean, factor or k-centre feature is NaN, infinite or overflows */
    FLAWSCOPE_NO_CUDA = 5,    /* this library was built without CUDA */
    FLAWSCOPE_OTHER_DEVICE = 6, /* an array is not on the current CUDA device */
    FLAWSCOPE_OTHER_BLOCK = 7,  /* of another version, SIMD level or storage, or of other rows or factors */
    FLAWSCOPE_DAMAGED_BLOCK = 8, /* no block of a bank, shorter than it says, or changed since it was written */
    FLAWSCOPE_CUDA = 1000     /* plus the cudaError_t that was returned */
} flawscope_status;

/* Words for a status; the text lives as long as the program. */
FLAWSCOPE_API const char* flawscope_status_text(int status);

/* Version of this interface; changes when a function changes its meaning or its parameters. */
#define FLAWSCOPE_PATCH_DISTANCE_VERSION 1
FLAWSCOPE_API int flawscope_patch_distance_version(void);

/* SIMD level in use: "scalar", "avx2", "avx512", "avx512vnni", "avx512amx" or "neon". The environment variable
 * FLAWSCOPE_SIMD forces one when the library is first used; a level that the processor lacks, or an unknown name, is
 * refused by every function with FLAWSCOPE_BAD_ARGUMENT, and this function returns NULL. */
FLAWSCOPE_API const char* flawscope_simd_level(void);

/* Take another level from now on, for tests; banks made before keep theirs. */
FLAWSCOPE_API int flawscope_set_simd_level(const char* name);

/* Name of the i-th level that this processor and this library have, best first; NULL past the last. */
FLAWSCOPE_API const char* flawscope_simd_level_at(int i);

/* ---- Element types ------------------------------------------------------------------------------------------- */

typedef enum flawscope_dtype { FLAWSCOPE_FLOAT32 = 0, FLAWSCOPE_FLOAT16 = 1 } flawscope_dtype;

typedef enum flawscope_storage {
    FLAWSCOPE_STORE_FLOAT32 = 0,
    FLAWSCOPE_STORE_FLOAT16 = 1, /* rows rounded to float16 */
    FLAWSCOPE_STORE_INT8 = 2     /* rows, and queries while they are compared, as 8-bit integers with a factor each */
} flawscope_storage;

/* ---- Memory bank --------------------------------------------------------------------------------------------- */

typedef struct flawscope_bank flawscope_bank;

/* Pack `m` rows of `d` channels for search.
 *
 * `storage` is a flawscope_storage. `rows` is float32 [m, d] and is not copied for FLAWSCOPE_STORE_FLOAT32: it must
 * outlive the bank. For the other storages it is needed only for re-ranking: pass keep_rows = 0 and it may be freed
 * after the call. FLAWSCOPE_STORE_INT8 takes d up to 65,536.
 *
 * `screen`: 1 adds an int8 copy to a float32 bank, through which up to 16 nearest rows are found first and then proved
 * in float32; a query without a proof is searched for in float32. Results stay exact. 0 does without, -1 lets the bank
 * decide: yes where this processor multiplies bytes much faster than floats. */
FLAWSCOPE_API int flawscope_bank_create(const float* rows, int64_t m, int64_t d, int storage, int keep_rows, int screen,
                                        int threads, flawscope_bank** out);
FLAWSCOPE_API void flawscope_bank_destroy(flawscope_bank* bank);

/* Largest distance (not squared) of a row to what is stored of it. A distance to the bank is off by at most this much
 * (plus the rounding of float32 sums), before re-ranking. Zero for float32. */
FLAWSCOPE_API double flawscope_bank_error_bound(const flawscope_bank* bank);

/* Bytes that the bank itself holds. */
FLAWSCOPE_API int64_t flawscope_bank_bytes(const flawscope_bank* bank);

/* Share of the queries so far that had no proof through the screen; -1 for a bank without one. */
FLAWSCOPE_API double flawscope_bank_unproved_share(const flawscope_bank* bank);

/* SIMD level that the bank was packed for. */
FLAWSCOPE_API const char* flawscope_bank_simd_level(const flawscope_bank* bank);

/* A bank as one block of memory, its rows with it, which many processes may map: it is packed once and lies there once.
 *
 * The block holds for this version of the library, the SIMD level of the bank and processors of this byte order; header,
 * rows and panels follow each other, each at a multiple of 64 bytes. Write `bytes` of it, what
 * flawscope_bank_block_bytes says. Banks that keep no rows have none: 0 bytes, and FLAWSCOPE_BAD_ARGUMENT. */
FLAWSCOPE_API int64_t flawscope_bank_block_bytes(const flawscope_bank* bank);
FLAWSCOPE_API int flawscope_bank_write_block(const flawscope_bank* bank, void* block, int64_t bytes);

/* A bank from a block, which is not copied and must outlive it; nothing is written to it. `block` lies at a multiple of
 * 64 bytes. The other arguments are those that flawscope_bank_create would make the same bank of: `rows` is compared
 * with the rows of the block and not kept. All of the block is read and its checksum compared: where it is not whole
 * (FLAWSCOPE_DAMAGED_BLOCK) or not that bank (FLAWSCOPE_OTHER_BLOCK), nothing is made. */
FLAWSCOPE_API int flawscope_bank_open_block(const void* block, int64_t bytes, const float* rows, int64_t m, int64_t d,
                                            int storage, int screen, flawscope_bank** out);
/* Where in a block its rows begin, float32 [m, d]. */
#define FLAWSCOPE_BLOCK_ROWS 4096

/* ---- Nearest neighbours --------------------------------------------------------------------------------------- */

/* The k nearest rows of every query, nearest first, equal distances by the lower row.
 *
 * queries: [n, d] of `dtype`, a flawscope_dtype. k: 1 to 64, at most m. rerank: 0, or the number (k to 64) of
 * candidates whose distances are computed again from the float32 rows; needs keep_rows. squared: float32 [n, k]. rows:
 * int64 [n, k]. */
FLAWSCOPE_API int flawscope_nearest(const flawscope_bank* bank, const void* queries, int dtype, int64_t n, int k,
                                    int rerank, int threads, float* squared, int64_t* rows);

/* The same on plain rows float32 [m, d], packed a few at a time: for a bank that is searched once. */
FLAWSCOPE_API int flawscope_nearest_rows(const float* bank, int64_t m, int64_t d, const void* queries, int dtype,
                                         int64_t n, int k, int threads, float* squared, int64_t* rows);

/* ---- Nearest neighbours within windows ---------------------------------------------------------------------------- */

typedef struct flawscope_windows flawscope_windows;

/* A bank for fixed cameras: the patch at a place of a grid is compared only with rows that come from places near it.
 *
 * rows: float32 [m, d], sorted by the place they come from, row by row of the grid; not copied: it must outlive the
 * windows. starts: int64 [height * width + 1], the first row of every place, from 0 to m, not falling. reach: int32
 * [height * width], at least 0: the patch at (y, x) is compared with the rows of all places (v, u) with |y - v| and
 * |x - u| of at most the reach of (y, x). starts and reach may be freed afterwards. */
FLAWSCOPE_API int flawscope_windows_create(const float* rows, int64_t m, int64_t d, const int64_t* starts,
                                           int64_t height, int64_t width, const int32_t* reach, int threads,
                                           flawscope_windows** out);
FLAWSCOPE_API void flawscope_windows_destroy(flawscope_windows* windows);

/* The rows and their packed form as one block of memory; see flawscope_bank_write_block. It is the block of a float32
 * bank of these rows on the level that windows take, flawscope_windows_simd_level, which is another than that in use
 * where that has no windows; starts and reach are not in it. */
FLAWSCOPE_API int64_t flawscope_windows_block_bytes(const flawscope_windows* windows);
FLAWSCOPE_API int flawscope_windows_write_block(const flawscope_windows* windows, void* block, int64_t bytes);
FLAWSCOPE_API const char* flawscope_windows_simd_level(void);

/* Windows with a bank from such a block, which is checked as by flawscope_bank_open_block, not copied, and must outlive
 * them; the other arguments are those of flawscope_windows_create, and `rows` are not kept. */
FLAWSCOPE_API int flawscope_windows_open_block(const void* block, int64_t bytes, const float* rows, int64_t m,
                                               int64_t d, const int64_t* starts, int64_t height, int64_t width,
                                               const int32_t* reach, flawscope_windows** out);

/* Bytes that the windows themselves hold. */
FLAWSCOPE_API int64_t flawscope_windows_bytes(const flawscope_windows* windows);

/* Products of a query and a row that have been computed so far, those included whose result a window masked. */
FLAWSCOPE_API int64_t flawscope_windows_computed(const flawscope_windows* windows);

/* The nearest row of every patch within its window, the lower of equally near ones. A patch whose window has no row is
 * without a distance.
 *
 * queries: [images, height * width, d] of `dtype`, a flawscope_dtype. squared: float32 and rows: int64, [images,
 * height * width]. */
FLAWSCOPE_API int flawscope_windows_nearest(const flawscope_windows* windows, const void* queries, int dtype,
                                            int64_t images, int threads, float* squared, int64_t* rows);

/* ---- Greedy k-centre ------------------------------------------------------------------------------------------ */

/* Called between centres with (done, count, user); a value other than 0 stops the selection. */
typedef int (*flawscope_progress)(int64_t done, int64_t count, void* user);

/* Farthest-point selection (Gonzalez 1985): from row `first`, always the row farthest from its nearest centre, the
 * lowest among equals. features: float32 [n, d]. chosen: int64 [count], all different. computed: NULL, or where to
 * put the number of distances that had to be computed (n * count without pruning). */
FLAWSCOPE_API int flawscope_kcenter_greedy(const float* features, int64_t n, int64_t d, int64_t count, int64_t first,
                                           int threads, flawscope_progress progress, void* user, int64_t* chosen,
                                           int64_t* computed);

/* ---- Mahalanobis distance ------------------------------------------------------------------------------------- */

typedef struct flawscope_gaussians flawscope_gaussians;

/* Pack p Gaussians: mean float32 [p, d], whitening float32 [p, d, d] with W·Wᵀ = Σ⁻¹. Both may be freed afterwards.
 * Zeros above or below a triangle are not stored. */
FLAWSCOPE_API int flawscope_gaussians_create(const float* mean, const float* whitening, int64_t p, int64_t d,
                                             int threads, flawscope_gaussians** out);

/* The same from upper triangles alone, row after row: [p, d * (d + 1) / 2] of `dtype`, a flawscope_dtype. They are kept
 * and read in that type; sums are float32. With rounded factors V instead of W, d' instead of d, and any x,
 *
 *     |d' - d| <= e * d,   e the largest singular value of inverse(W) * V - 1 over all positions,
 *
 * as d' - d is at most |(x - mean) (V - W)| = |(x - mean) W * inverse(W) (V - W)|. */
FLAWSCOPE_API int flawscope_gaussians_create_triangles(const float* mean, const void* triangles, int dtype, int64_t p,
                                                       int64_t d, int threads, flawscope_gaussians** out);

/* Packed triangles as one block of memory, which many processes may map; see flawscope_bank_write_block. The arguments
 * are those of flawscope_gaussians_create_triangles. Write flawscope_gaussians_block_bytes of the SIMD level in use (0
 * for sizes that are out of range), to a multiple of 4 bytes; nothing else is allocated for it.
 *
 * Gaussians from a block, at a multiple of 64 bytes, are not copied: it must outlive them. All of it is compared with
 * `mean` and `triangles`, which are not kept: they are to the last bit what flawscope_gaussians_write_block makes of
 * these, or nothing is made (FLAWSCOPE_DAMAGED_BLOCK, FLAWSCOPE_OTHER_BLOCK). */
FLAWSCOPE_API int64_t flawscope_gaussians_block_bytes(int dtype, int64_t p, int64_t d);
FLAWSCOPE_API int flawscope_gaussians_write_block(const float* mean, const void* triangles, int dtype, int64_t p,
                                                  int64_t d, int threads, void* block, int64_t bytes);
FLAWSCOPE_API int flawscope_gaussians_open_block(const void* block, int64_t bytes, const float* mean,
                                                 const void* triangles, int dtype, int64_t p, int64_t d, int threads,
                                                 flawscope_gaussians** out);
FLAWSCOPE_API void flawscope_gaussians_destroy(flawscope_gaussians* gaussians);
FLAWSCOPE_API int64_t flawscope_gaussians_bytes(const flawscope_gaussians* gaussians);

/* Squared distances ‖(x − μ)·W‖² of features float32 [n, p, d]: squared float32 [n, p]. */
FLAWSCOPE_API int flawscope_mahalanobis(const flawscope_gaussians* gaussians, const float* features, int64_t n,
                                        int threads, float* squared);

/* ---- CUDA ----------------------------------------------------------------------------------------------------- *
 *
 * State: compiled for compute capability 7.5, 8.0, 8.6, 8.7, 8.9, 9.0, 10.0 and 12.0, not run; run in emulation on the
 * CPU. Without CUDA in the build every function below returns FLAWSCOPE_NO_CUDA.
 *
 * Pointers to arrays are to memory of the current device (or pinned or managed memory, or plain memory where the device
 * reads that), which the caller owns and keeps until the work on the stream is done. Others are refused with
 * FLAWSCOPE_OTHER_DEVICE before anything is started. A search by code of before 8.0 on a later device is refused with the
 * status of cudaErrorNoKernelImageForDevice. `stream` is a cudaStream_t. Except for flawscope_cuda_bank_check, functions
 * only put work on the stream:
 * they allocate nothing, wait for nothing and may be captured in a CUDA graph. Memory named "packed" or "workspace" is
 * aligned to 16 bytes; its size is asked for first. A status of FLAWSCOPE_CUDA and more is of a launch; what goes wrong
 * on the device later is told by the stream. */

/* 1 where this library was built with CUDA, also where the machine has no device. */
FLAWSCOPE_API int flawscope_has_cuda(void);
FLAWSCOPE_API int flawscope_cuda_device_count(int* count);

/* Bytes of a packed bank of m rows of d channels, d up to 65,536. */
FLAWSCOPE_API int flawscope_cuda_bank_bytes(int64_t m, int64_t d, int64_t* bytes);

/* Pack rows [m, d] of `dtype`, a flawscope_dtype, as float16 with their squared norms.
 *
 * The mean of the rows is taken off, rounded to a 64th of the power of two below the largest magnitude of the channel;
 * distances stay as they are. Rows are scaled by one power of two, taken from the largest component, so values beyond
 * float16's 65,504 need no refusal. Mean and scale stay on the device. */
FLAWSCOPE_API int flawscope_cuda_bank_pack(const void* rows, int dtype, int64_t m, int64_t d, void* packed,
                                           void* stream);

/* Wait for the stream and return FLAWSCOPE_NOT_FINITE where a packed row is NaN, infinite or has a squared norm of
 * 2^126 or more. Whoever does not ask is told by the search: such a bank gives NaN with row -1 for every query. */
FLAWSCOPE_API int flawscope_cuda_bank_check(const void* packed, void* stream);

/* Workspace of flawscope_cuda_nearest on the current device; depends on its number of multiprocessors. Enough for n
 * queries and for fewer, with the other arguments alike. Loads the kernels, too: after it the first search may be one
 * that is captured. */
FLAWSCOPE_API int flawscope_cuda_nearest_bytes(int64_t n, int64_t m, int64_t d, int k, int rerank, int64_t* bytes);

/* The k nearest rows of every query, nearest first, equal distances by the lower row.
 *
 * rows: [m, d] of `rows_dtype`, what `packed` was made of; or NULL: distances are then those to the packed rows.
 * queries: [n, d] of `dtype`. k: 1 to 64, at most m. squared: float32 [n, k]. found: int64 [n, k].
 *
 * Candidates are searched as ||m||^2 - 2 q.m with operands rounded to float16 and sums in float32. `rerank` of them
 * (k to 64, or 0 for k + 7, at most 64 and m) are computed again as the float32 sum of (q - m)^2 and ordered by it. With
 * k = 1 and up to 16 candidates, these are the best of 16 slots, each the best of the rows that the same threads see. So
 * the distances are those of the rows that are named, to the rounding of a float32 sum; which rows are named depends on
 * the search. With s_j the distance (not squared) of the row at place j, r_j that of the true one, q and m after the
 * mean has been taken off, and B the largest norm of a bank row,
 *
 *     s_j <= r_j + (|q| + B) * (2^-10 + 2^-18 + 2^-11 * sqrt(d + 4)),
 *
 * besides the rounding of the float32 sums. For: float16 moves a component by at most 2^-11 of itself, taking off the
 * mean by 2^-24, and where it is below float16's normal range it is moved by 2^-28 of the largest component of its query
 * or bank (also if the tensor cores take subnormal numbers for 0), so that a distance of rounded operands is off by at
 * most e = (2^-11 + 2^-19) (|q| + B). NVIDIA promises "at least single precision" for the sums and leaves their order and
 * rounding open; with 2^-22 of the sum of magnitudes for each of d additions, and the norm's and the last sum's own
 * rounding, the squared distance of rounded operands is off by at most g = (d + 4) 2^-23 (|q| + B)^2. A row of the
 * true first j that is not among the candidates lost to all of them, so every candidate has
 * s <= r_j + 2 e + sqrt(2 g); and if none is missing, s_j is r_j. A row that lost to the best of its slot lost to a
 * candidate, or to one that lost to all of them. */
FLAWSCOPE_API int flawscope_cuda_nearest(const void* packed, const void* rows, int rows_dtype, int64_t m, int64_t d,
                                         const void* queries, int dtype, int64_t n, int k, int rerank, void* workspace,
                                         int64_t workspace_bytes, float* squared, int64_t* found, void* stream);

/* The nearest row within its window of every patch of n images, as flawscope_windows_nearest; all arrays on the device.
 *
 * rows: float32 [m, d], sorted by place. starts: int64 [height * width + 1], from 0 to m, not falling, and reach: int32
 * [height * width], at least 0, cannot be checked from here: others lead out of the bank. queries: [n, height * width, d]
 * of `dtype`. squared: float32 and found: int64, [n, height * width]. Distances are float32 sums of (q - m)^2, and the
 * order is that of these sums; a row with NaN or infinity is never near. Needs no workspace. */
FLAWSCOPE_API int flawscope_cuda_windows_nearest(const float* rows, int64_t m, int64_t d, const int64_t* starts,
                                                 int64_t height, int64_t width, const int32_t* reach,
                                                 const void* queries, int dtype, int64_t n, float* squared,
                                                 int64_t* found, void* stream);

/* Squared distances of features [n, p, d] to p Gaussians, mean [p, d] and whitening [p, d, d], all float32:
 * squared [n, p]. NaN where a feature, mean or factor is NaN or infinite, or the distance is beyond float32. */
FLAWSCOPE_API int flawscope_cuda_mahalanobis(const float* mean, const float* whitening, int64_t p, int64_t d,
                                             const float* features, int64_t n, float* squared, void* stream);

/* The same from upper triangles, [p, d * (d + 1) / 2] of `dtype`; see flawscope_gaussians_create_triangles. */
FLAWSCOPE_API int flawscope_cuda_mahalanobis_triangles(const float* mean, const void* triangles, int dtype, int64_t p,
                                                       int64_t d, const float* features, int64_t n, float* squared,
                                                       void* stream);

FLAWSCOPE_API int flawscope_cuda_kcenter_bytes(int64_t n, int64_t count, int64_t* bytes);

/* Farthest-point selection as flawscope_kcenter_greedy, a pass over the features [n, d] for each centre. chosen: int64
 * [count] on the device, -1 throughout where a feature is NaN, infinite or has a squared norm of 2^126 or more. Puts
 * count + 1 kernels on the stream. */
FLAWSCOPE_API int flawscope_cuda_kcenter_greedy(const float* features, int64_t n, int64_t d, int64_t count,
                                                int64_t first, void* workspace, int64_t workspace_bytes,
                                                int64_t* chosen, void* stream);

/* ---- Diffusion ------------------------------------------------------------------------------------------------ *
 *
 * A sampling on the device: calls of a network, and between them one kernel. What it does is said by a row in device
 * memory, so that a graph that was captured for a number of steps serves every schedule, solver and option. */

typedef enum flawscope_diffusion_rule {
    FLAWSCOPE_DIFFUSION_START = 0, /* x = noise, or hidden * next_clean + noise * next_noise */
    FLAWSCOPE_DIFFUSION_DDIM = 1,  /* x = clean part * next_clean + prediction * next_noise */
    FLAWSCOPE_DIFFUSION_DPM = 2    /* x = x * next_x + clean part * next_clean */
} flawscope_diffusion_rule;

typedef enum flawscope_diffusion_flag {
    FLAWSCOPE_DIFFUSION_MIXED = 1,   /* the start is mixed with the image */
    FLAWSCOPE_DIFFUSION_SECOND = 2,  /* second order: the clean part's change since the last step, times `change` */
    FLAWSCOPE_DIFFUSION_CLIP = 4,    /* the clean part is kept within [-1, 1] */
    FLAWSCOPE_DIFFUSION_AIM = 8,     /* prediction -= (clean * aim_clean + prediction * aim_noise - x) * aim */
    FLAWSCOPE_DIFFUSION_MIX = 16,    /* x = x * mix_x + clean * mix_clean */
    FLAWSCOPE_DIFFUSION_RESTORE = 32, /* where keep > 0: x = clean * known_clean + noise[0] * known_noise */
    FLAWSCOPE_DIFFUSION_CLEAN = 64,  /* ... or clean itself */
    FLAWSCOPE_DIFFUSION_BOUND = 128, /* x is kept within [-1, 1] */
    FLAWSCOPE_DIFFUSION_LAST = 256   /* no call of the network follows: no input is written */
} flawscope_diffusion_flag;

/* In the order in which they are taken. The clean part of x is (x - prediction * noise_part) * inverse_signal. */
typedef struct flawscope_diffusion_row {
    int64_t timestep; /* given to the next call of the network */
    int32_t rule, flags;
    int32_t added;  /* array of noise that is added to x, times sigma; -1: none */
    int32_t around; /* array of noise of what is put back around: x = keep * (clean * around_clean + noise *
                       around_noise) + (1 - keep) * x; -1: none */
    float guidance; /* prediction = without text + (with text - without) * guidance */
    float noise_part, inverse_signal, next_x, next_clean, next_noise, change, sigma;
    float known_clean, known_noise, around_clean, around_noise;
    float aim_clean, aim_noise, aim, mix_x, mix_clean;
} flawscope_diffusion_row;

/* One step for n images of c channels and `cells` cells: predictions -> x and the network's next input. Every operation
 * is rounded to float32 by itself.
 *
 * row: on the device. guided: 1, predicted and input hold 2 n images, first those without the text; 0, they hold n.
 * predicted: float32, what the network gave; not read by a row that starts. clean: float32 [n, c, cells], the normal
 * image. hidden: what the start is mixed of instead, or NULL. keep: float32 [n, cells], 1 where the image is kept, or
 * NULL where no row restores. masked: float32 [n, c, cells], of a network that takes 2 c + 1 channels: x, 1 - keep and
 * this, or NULL; needs keep. noise: float32 [n, arrays, c, cells], or with `arrays` 0 [any, c, cells] for all images.
 * x: float32 [n, c, cells], read and written. past: float32 [n, c, cells], kept from step to step for rule DPM. input:
 * float32, written. timesteps: int64 [n or 2 n], written. What rows refer to cannot be checked from here. A first launch
 * loads the kernel: launch it once before it is captured. */
FLAWSCOPE_API int flawscope_cuda_diffusion_step(const flawscope_diffusion_row* row, int64_t n, int64_t c, int64_t cells,
                                                int guided, const float* predicted, const float* clean,
                                                const float* hidden, const float* keep, const float* masked,
                                                const float* noise, int64_t arrays, float* x, float* past,
                                                float* input, int64_t* timesteps, void* stream);

/* ---- Anomaly maps --------------------------------------------------------------------------------------------- */

/* rows · grid · columns for every grid: enlarging and smoothing in one step. grids: float32 [n, h, w], rows: [out_h, h],
 * columns: [w, out_w], maps: [n, out_h, out_w]. */
FLAWSCOPE_API int flawscope_separable_maps(const float* grids, int64_t n, int64_t h, int64_t w, const float* rows,
                                           int64_t out_h, const float* columns, int64_t out_w, int threads,
                                           float* maps);

#ifdef __cplusplus
}
#endif

#endif
