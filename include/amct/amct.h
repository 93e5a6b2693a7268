/* The library for C, and for languages that call C: calibration, records, codes.
 *
 * Every function that can fail returns an amct_status; amct_last_error() then says what was wrong,
 * and where. Handles are made by functions that end with _open or _create and given back to the one
 * that ends with _close. A handle may be used by several threads at a time where that is said.
 * Strings are UTF-8, end with NUL, and are copied where they are kept.
 *
 * What is here stays: functions are added, not changed, within a major version of the library
 * (AMCT_API_VERSION counts the additions).
 */
/* NOLINTBEGIN(modernize-*,cppcoreguidelines-*,performance-enum-size,readability-*): it is C. */
#ifndef AMCT_AMCT_H
#define AMCT_AMCT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define AMCT_API
#else
#define AMCT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define AMCT_API_VERSION 1

typedef enum amct_status {
  AMCT_OK = 0,
  AMCT_VALUE_ERROR = 1,      /* an argument, or what a file holds, is wrong */
  AMCT_TYPE_ERROR = 2,       /* an argument is of a wrong type */
  AMCT_STATE_ERROR = 3,      /* not possible after what happened before */
  AMCT_NON_FINITE_ERROR = 4, /* a batch holds NaN or infinite values */
  AMCT_IO_ERROR = 5,         /* a file cannot be read or written */
  AMCT_MEMORY_ERROR = 6,     /* memory ran out */
  AMCT_INTERNAL_ERROR = 7    /* a bug of the library */
} amct_status;

typedef enum amct_dtype { AMCT_FLOAT32 = 0, AMCT_FLOAT16 = 1, AMCT_BFLOAT16 = 2 } amct_dtype;

/* A tensor in the caller's memory. The last dimension is the channel. */
typedef struct amct_tensor {
  const void* data;       /* element [0, ..., 0] */
  int32_t dtype;          /* an amct_dtype */
  size_t dims;            /* number of dimensions */
  const int64_t* shape;   /* `dims` sizes */
  const int64_t* strides; /* `dims` strides in elements; NULL: contiguous, row-major */
} amct_tensor;

/* "0.1.0", that of the library. */
AMCT_API const char* amct_version(void);
/* What the last call of this thread that failed had to say; "" before. Good until the next one. */
AMCT_API const char* amct_last_error(void);

/* Writes the configuration file of some layers, each calibrated by `algorithm` ("ifmr", "hfmg",
 * "minmax", "percentile", "mse", "kl") at its defaults. `granularity` is "per_tensor",
 * "per_channel" or "per_head", which needs `heads`; `dst_type` "INT8", "INT4", "FP8_E4M3", ...
 */
AMCT_API amct_status amct_write_config(const char* config_file, const char* const* layers,
                                       size_t layer_count, int64_t batch_num, const char* algorithm,
                                       const char* granularity, int64_t heads,
                                       const char* dst_type);

/* A calibration run. Several threads may use one. */
typedef struct amct_session amct_session;

/* Begins a run by a configuration file, whose factors go into a record file. `counts_file` gets
 * what the layers were seen to hold; NULL: nowhere. */
AMCT_API amct_status amct_session_open(const char* config_file, const char* record_file,
                                       const char* counts_file, amct_session** session);
/* Ends a run; layers that have not seen all their batches get no factors. NULL is nothing. */
AMCT_API void amct_session_close(amct_session* session);
/* Adds a batch to a layer; `finished`, which may be NULL, gets whether it has seen all its batches.
 */
AMCT_API amct_status amct_session_observe(amct_session* session, const char* layer,
                                          const amct_tensor* batch, int* finished);
/* Finishes layers that have seen some of their batches, and writes the record. */
AMCT_API amct_status amct_session_finish(amct_session* session);
/* The layers that need more batches. */
AMCT_API amct_status amct_session_unfinished(const amct_session* session, size_t* layers);
/* Saves what was seen so far, between two batches; and goes on from that in a new run of the same
 * configuration. `batches_done` is the caller's number. */
AMCT_API amct_status amct_session_save(amct_session* session, const char* snapshot,
                                       int64_t batches_done);
AMCT_API amct_status amct_session_restore(amct_session* session, const char* snapshot,
                                          int64_t* batches_done);

/* The factors in a record file. Several threads may use one. */
typedef struct amct_record amct_record;

/* One layer of a record: x' = (code - offset) * scale. What it points to is the record's. */
typedef struct amct_factors {
  const char* layer;
  const char* dst_type;    /* "INT8", ... */
  const char* granularity; /* "per_tensor", "per_channel" or "per_head" */
  size_t count;            /* of scales and offsets: 1, one a channel or one a head */
  const float* scales;
  const int32_t* offsets;
  int64_t sink_tokens; /* first tokens of each sequence that they are not for */
} amct_factors;

AMCT_API amct_status amct_record_open(const char* record_file, amct_record** record);
AMCT_API void amct_record_close(amct_record* record);
AMCT_API size_t amct_record_layers(const amct_record* record);
AMCT_API amct_status amct_record_layer(const amct_record* record, size_t index,
                                       amct_factors* factors);
/* The layer of that name; AMCT_VALUE_ERROR where there is none. */
AMCT_API amct_status amct_record_find(const amct_record* record, const char* layer,
                                      amct_factors* factors);

/* Searches the factors of a counts file again and writes the record. `algorithm`, `granularity` and
 * `dst_type` replace the settings of the calibration; NULL: as it was. */
AMCT_API amct_status amct_solve(const char* counts_file, const char* record_file,
                                const char* algorithm, const char* granularity,
                                const char* dst_type);

/* Makes the codes of a layer's tensors, and tensors of codes. Several threads may use one. */
typedef struct amct_codec amct_codec;

/* By the factors of a layer. `heads_apart` is whether tensors are [..., heads, tokens, head_dim],
 * as caches have them, and not [..., channels]. */
AMCT_API amct_status amct_codec_create(const amct_factors* factors, int heads_apart,
                                       amct_codec** codec);
AMCT_API void amct_codec_close(amct_codec* codec);
/* Bytes that the codes of a row of so many channels take. */
AMCT_API int64_t amct_codec_row_bytes(const amct_codec* codec, int64_t channels);
/* Codes of `x`, row after row: rows * amct_codec_row_bytes() bytes. */
AMCT_API amct_status amct_codec_quantize(const amct_codec* codec, const amct_tensor* x,
                                         uint8_t* codes, size_t size);
/* What codes stand for, in a contiguous tensor of the shape of `like`, whose data is not read. */
AMCT_API amct_status amct_codec_dequantize(const amct_codec* codec, const uint8_t* codes,
                                           size_t size, const amct_tensor* like, void* values);

#ifdef __cplusplus
}
#endif

#endif
/* NOLINTEND(modernize-*,cppcoreguidelines-*,performance-enum-size,readability-*) */
