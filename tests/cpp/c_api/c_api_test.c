/* The library as C sees it: a calibration, its record, codes; and what is refused. */
#include "amct/amct.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define EXPECT(condition)                                                               \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      (void)fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition, \
                    amct_last_error());                                                 \
      ++failures;                                                                       \
    }                                                                                   \
  } while (0)

enum { kRows = 16, kChannels = 8, kBatches = 2 };

static char folder[1024];
static char paths[8][1100];

static const char* path(int slot, const char* name) {
  (void)snprintf(paths[slot], sizeof paths[slot], "%s/%s", folder, name);
  return paths[slot];
}

static void fill(float* values, int seed) {
  for (int i = 0; i < kRows * kChannels; ++i) values[i] = sinf((float)(i + seed)) * 3.0F;
}

static amct_tensor tensor_of(const float* values, const int64_t* shape) {
  const amct_tensor tensor = {values, AMCT_FLOAT32, 2, shape, NULL};
  return tensor;
}

static void calibrate(void) {
  const char* const layers[] = {"layers.0.k_proj", "layers.0.v_proj"};
  EXPECT(amct_write_config(path(0, "config.json"), layers, 2, kBatches, "mse", "per_channel", 0,
                           "INT8") == AMCT_OK);
  amct_session* session = NULL;
  EXPECT(amct_session_open(path(0, "config.json"), path(1, "record.txt"), path(2, "all.counts"),
                           &session) == AMCT_OK);
  const int64_t shape[] = {kRows, kChannels};
  float values[kRows * kChannels];
  int finished = -1;
  for (int layer = 0; layer < 2; ++layer) {
    fill(values, layer);
    const amct_tensor batch = tensor_of(values, shape);
    EXPECT(amct_session_observe(session, layers[layer], &batch, &finished) == AMCT_OK);
    EXPECT(finished == 0);
  }
  size_t unfinished = 0;
  EXPECT(amct_session_unfinished(session, &unfinished) == AMCT_OK && unfinished == 2);
  EXPECT(amct_session_save(session, path(3, "run.snapshot"), 1) == AMCT_OK);
  amct_session_close(session);

  EXPECT(amct_session_open(path(0, "config.json"), path(1, "record.txt"), path(2, "all.counts"),
                           &session) == AMCT_OK);
  int64_t done = 0;
  EXPECT(amct_session_restore(session, path(3, "run.snapshot"), &done) == AMCT_OK && done == 1);
  for (int layer = 0; layer < 2; ++layer) {
    fill(values, 10 + layer);
    const amct_tensor batch = tensor_of(values, shape);
    EXPECT(amct_session_observe(session, layers[layer], &batch, &finished) == AMCT_OK);
    EXPECT(finished == 1);
  }
  EXPECT(amct_session_finish(session) == AMCT_OK);
  amct_session_close(session);
}

static void read_and_store(void) {
  amct_record* record = NULL;
  EXPECT(amct_record_open(path(1, "record.txt"), &record) == AMCT_OK);
  EXPECT(amct_record_layers(record) == 2);
  amct_factors factors;
  EXPECT(amct_record_layer(record, 1, &factors) == AMCT_OK);
  EXPECT(strcmp(factors.layer, "layers.0.v_proj") == 0);
  EXPECT(amct_record_find(record, "layers.0.k_proj", &factors) == AMCT_OK);
  EXPECT(strcmp(factors.dst_type, "INT8") == 0);
  EXPECT(strcmp(factors.granularity, "per_channel") == 0);
  EXPECT(factors.count == kChannels && factors.sink_tokens == 0);
  EXPECT(factors.scales[0] > 0 && factors.scales[0] < 1);

  amct_codec* codec = NULL;
  EXPECT(amct_codec_create(&factors, 0, &codec) == AMCT_OK);
  EXPECT(amct_codec_row_bytes(codec, kChannels) == kChannels);
  const int64_t shape[] = {kRows, kChannels};
  float values[kRows * kChannels];
  float read[kRows * kChannels];
  uint8_t codes[kRows * kChannels];
  fill(values, 0);
  const amct_tensor tensor = tensor_of(values, shape);
  EXPECT(amct_codec_quantize(codec, &tensor, codes, sizeof codes) == AMCT_OK);
  EXPECT(amct_codec_dequantize(codec, codes, sizeof codes, &tensor, read) == AMCT_OK);
  for (int i = 0; i < kRows * kChannels; ++i) EXPECT(fabsf(values[i] - read[i]) < 0.1F);
  EXPECT(amct_codec_quantize(codec, &tensor, codes, sizeof codes - 1) == AMCT_VALUE_ERROR);
  EXPECT(strstr(amct_last_error(), "codes take 128 bytes, and there are 127") != NULL);
  amct_codec_close(codec);
  amct_record_close(record);

  EXPECT(amct_solve(path(2, "all.counts"), path(4, "int4.txt"), "minmax", "per_tensor", "INT4") ==
         AMCT_OK);
  EXPECT(amct_record_open(path(4, "int4.txt"), &record) == AMCT_OK);
  EXPECT(amct_record_layer(record, 0, &factors) == AMCT_OK);
  EXPECT(factors.count == 1 && strcmp(factors.dst_type, "INT4") == 0);
  amct_record_close(record);
  EXPECT(amct_solve(path(2, "all.counts"), path(5, "all.counts"), NULL, NULL, NULL) ==
         AMCT_VALUE_ERROR);
  EXPECT(strstr(amct_last_error(), "all.counts") != NULL);
  EXPECT(amct_solve(path(2, "all.counts"), path(4, "int4.txt"), NULL, NULL, NULL) == AMCT_OK);
}

static void refuse(void) {
  amct_session* session = (amct_session*)&failures;
  EXPECT(amct_session_open(path(0, "config.json"), path(1, "config.json"), NULL, &session) ==
         AMCT_VALUE_ERROR);
  EXPECT(session == NULL && strstr(amct_last_error(), "config.json") != NULL);
  session = (amct_session*)&failures;
  EXPECT(amct_session_open(path(5, "none.json"), path(6, "none.txt"), NULL, &session) ==
         AMCT_IO_ERROR);
  EXPECT(session == NULL);
  EXPECT(strstr(amct_last_error(), "none.json") != NULL);
  EXPECT(amct_session_open(NULL, path(6, "none.txt"), NULL, &session) == AMCT_VALUE_ERROR);
  EXPECT(strcmp(amct_last_error(), "config_file must not be NULL") == 0);
  EXPECT(amct_session_finish(NULL) == AMCT_VALUE_ERROR);
  EXPECT(amct_write_config(path(5, "x.json"), NULL, 1, 1, NULL, NULL, 0, NULL) == AMCT_VALUE_ERROR);
  const char* const layers[] = {"a"};
  EXPECT(amct_write_config(path(5, "x.json"), layers, 1, 1, "best", NULL, 0, NULL) ==
         AMCT_VALUE_ERROR);
  EXPECT(amct_write_config(path(5, "x.json"), layers, 1, 1, NULL, "per_head", 0, NULL) ==
         AMCT_VALUE_ERROR);
  EXPECT(amct_write_config(path(5, "x.json"), layers, 1, 1, NULL, NULL, 0, NULL) == AMCT_OK);
  EXPECT(amct_session_open(path(5, "x.json"), path(6, "x.txt"), NULL, &session) == AMCT_OK);
  float values[2] = {1, NAN};
  const int64_t shape[] = {2};
  amct_tensor batch = {values, AMCT_FLOAT32, 1, shape, NULL};
  EXPECT(amct_session_observe(session, "a", &batch, NULL) == AMCT_NON_FINITE_ERROR);
  EXPECT(amct_session_observe(session, "b", &batch, NULL) == AMCT_VALUE_ERROR);
  EXPECT(amct_session_observe(session, "a", NULL, NULL) == AMCT_VALUE_ERROR);
  batch.dtype = 7;
  EXPECT(amct_session_observe(session, "a", &batch, NULL) == AMCT_VALUE_ERROR);
  batch.dtype = AMCT_FLOAT32;
  batch.data = NULL;
  EXPECT(amct_session_observe(session, "a", &batch, NULL) == AMCT_VALUE_ERROR);
  batch.shape = NULL;
  EXPECT(amct_session_observe(session, "a", &batch, NULL) == AMCT_VALUE_ERROR);
  amct_session_close(session);
  amct_record* record = NULL;
  EXPECT(amct_record_open(path(5, "x.json"), &record) == AMCT_VALUE_ERROR && record == NULL);
  amct_factors factors = {"a", "INT8", "per_tensor", 1, NULL, NULL, 0};
  EXPECT(amct_record_layer(NULL, 0, &factors) == AMCT_VALUE_ERROR);
  amct_codec* codec = NULL;
  EXPECT(amct_codec_create(&factors, 0, &codec) == AMCT_VALUE_ERROR && codec == NULL);
  amct_session_close(NULL);
  amct_record_close(NULL);
  amct_codec_close(NULL);
  EXPECT(amct_record_layers(NULL) == 0 && amct_codec_row_bytes(NULL, 8) == 0);
}

static void write_text(const char* file, const char* text) {
  FILE* out = fopen(file, "w");
  EXPECT(out != NULL && fputs(text, out) >= 0 && fclose(out) == 0);
}

/* What C cannot say, or a machine cannot hold. */
static void refuse_hostile(void) {
  const char* const bytes[] = {"a\xff"};
  EXPECT(amct_write_config(path(5, "y.json"), bytes, 1, 1, NULL, NULL, 0, NULL) ==
         AMCT_VALUE_ERROR);
  EXPECT(strstr(amct_last_error(), "'a\\xff', is not UTF-8") != NULL);
  const char* const setting[] = {"batch_num"};
  EXPECT(amct_write_config(path(5, "y.json"), setting, 1, 1, NULL, NULL, 0, NULL) ==
         AMCT_VALUE_ERROR);
  write_text(path(6, "nul.txt"),
             "record { key: 'a' kv_cache_value { scale: 1 offset: 0 } }\n"
             "record { key: 'a\\000b' kv_cache_value { scale: 1 offset: 0 } }\n");
  amct_record* record = NULL;
  EXPECT(amct_record_open(path(6, "nul.txt"), &record) == AMCT_VALUE_ERROR && record == NULL);
  EXPECT(strstr(amct_last_error(), "'a\\x00b' holds a NUL") != NULL);

  const char* const layers[] = {"a"};
  amct_session* session = NULL;
  EXPECT(amct_write_config(path(5, "y.json"), layers, 1, 1, NULL, NULL, 0, NULL) == AMCT_OK);
  EXPECT(amct_session_open(path(5, "y.json"), path(6, "y.txt"), NULL, &session) == AMCT_OK);
  const float values[4] = {1, 2, 3, 4};
  const int64_t shapes[][2] = {{-1, 4},
                               {INT64_MIN, 4},
                               {INT64_MAX, 2},
                               {INT64_MAX, INT64_MAX},
                               {INT64_C(1) << 32, INT64_C(1) << 31}};
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; ++i) {
    const amct_tensor batch = {values, AMCT_FLOAT32, 2, shapes[i], NULL};
    EXPECT(amct_session_observe(session, "a", &batch, NULL) == AMCT_VALUE_ERROR);
  }
  const int64_t shape[] = {2, 2};
  const int64_t strides[][2] = {{INT64_MAX, 1},
                                {INT64_MIN, 1},
                                {1, INT64_MIN},
                                {INT64_MAX / 4, 1},
                                {INT64_MAX / 8 + 1, INT64_MAX / 8}};
  for (size_t i = 0; i < sizeof strides / sizeof strides[0]; ++i) {
    const amct_tensor batch = {values, AMCT_FLOAT32, 2, shape, strides[i]};
    EXPECT(amct_session_observe(session, "a", &batch, NULL) == AMCT_VALUE_ERROR);
    EXPECT(strstr(amct_last_error(), "out of memory") != NULL);
  }
  const amct_tensor flat = {values, AMCT_FLOAT32, (size_t)-1, shape, NULL};
  EXPECT(amct_session_observe(session, "a", &flat, NULL) == AMCT_VALUE_ERROR);
  amct_session_close(session);

  const float scale = 1;
  const int32_t offset = 0;
  const amct_factors factors = {"a", "INT8", "per_tensor", 1, &scale, &offset, 0};
  amct_codec* codec = NULL;
  EXPECT(amct_codec_create(&factors, 0, &codec) == AMCT_OK);
  uint8_t codes[4] = {0};
  const amct_tensor x = {values, AMCT_FLOAT32, 2, shape, NULL};
  EXPECT(amct_codec_quantize(codec, &x, codes, 3) == AMCT_VALUE_ERROR);
  EXPECT(amct_codec_quantize(codec, &x, codes, 4) == AMCT_OK);
  const int64_t huge[] = {INT64_C(1) << 40, INT64_C(1) << 20};
  const amct_tensor large = {values, AMCT_FLOAT32, 2, huge, NULL};
  EXPECT(amct_codec_quantize(codec, &large, codes, 4) == AMCT_VALUE_ERROR);
  EXPECT(amct_codec_row_bytes(codec, -1) <= 0);
  amct_codec_close(codec);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  (void)snprintf(folder, sizeof folder, "%s", argv[1]);
  EXPECT(strchr(amct_version(), '.') != NULL);
  EXPECT(strcmp(amct_last_error(), "") == 0);
  calibrate();
  read_and_store();
  refuse();
  refuse_hostile();
  (void)printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
