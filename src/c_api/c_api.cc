#include "amct/amct.h"
#include "amct/config/calibration_config.h"
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"
#include "amct/session/session.h"
#include "amct/store/codes.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "export/model_layers.h"

struct amct_session {
  amct::Session session;
};

struct amct_record {
  struct Layer {
    std::string name;
    std::string dst_type;
    std::string granularity;
    std::vector<float> scales;
    std::vector<std::int32_t> offsets;
    std::int64_t sink_tokens;
  };
  std::vector<Layer> layers;
};

struct amct_codec {
  amct::Codec codec;
};

namespace {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

amct_status failed(amct_status status, const char* message) {
  try {
    last_error() = message;
  } catch (const std::bad_alloc&) {  // then there is no message
    last_error().clear();
  }
  return status;
}

/// Does something, and tells how it went.
template <typename Action>
amct_status guarded(Action action) {
  try {
    action();
    return AMCT_OK;
  } catch (const amct::NonFiniteError& error) {
    return failed(AMCT_NON_FINITE_ERROR, error.what());
  } catch (const amct::IoError& error) {
    return failed(AMCT_IO_ERROR, error.what());
  } catch (const amct::StateError& error) {
    return failed(AMCT_STATE_ERROR, error.what());
  } catch (const amct::TypeError& error) {
    return failed(AMCT_TYPE_ERROR, error.what());
  } catch (const amct::ValueError& error) {
    return failed(AMCT_VALUE_ERROR, error.what());
  } catch (const std::bad_alloc&) {
    return failed(AMCT_MEMORY_ERROR, "memory ran out");
  } catch (const std::length_error&) {  // more than a container could hold in any memory
    return failed(AMCT_MEMORY_ERROR, "memory ran out");
  } catch (const std::exception& error) {
    return failed(AMCT_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(AMCT_INTERNAL_ERROR, "an error of no kind that is known");
  }
}

/// Throws ValueError for a null pointer.
template <typename T>
T& needed(T* argument, const char* name) {
  if (argument == nullptr) throw amct::ValueError(std::string(name) + " must not be NULL");
  return *argument;
}
std::string text(const char* argument, const char* name) { return &needed(argument, name); }

// A number, since C may give any where an enumeration is asked for.
amct::DType dtype_of(std::int32_t dtype) {
  if (dtype == AMCT_FLOAT32) return amct::DType::kFloat32;
  if (dtype == AMCT_FLOAT16) return amct::DType::kFloat16;
  if (dtype == AMCT_BFLOAT16) return amct::DType::kBFloat16;
  throw amct::ValueError("dtype must be one of amct_dtype, not " + std::to_string(dtype));
}

amct::TensorView view_of(const amct_tensor& tensor) {
  constexpr std::size_t kMostDims = 64;
  if (tensor.dims > kMostDims) throw amct::ValueError("a tensor has more than 64 dimensions");
  if (tensor.dims > 0) needed(tensor.shape, "shape");
  std::vector<std::int64_t> shape(tensor.shape, tensor.shape + tensor.dims);
  amct::TensorView view =
      amct::TensorView::contiguous(tensor.data, dtype_of(tensor.dtype), std::move(shape));
  if (tensor.strides != nullptr) view.strides.assign(tensor.strides, tensor.strides + tensor.dims);
  view.validate();
  return view;
}

amct::Granularity granularity_named(const std::string& name) {
  for (const amct::Granularity granularity :
       {amct::Granularity::kPerTensor, amct::Granularity::kPerChannel,
        amct::Granularity::kPerHead}) {
    if (name == name_of(granularity)) return granularity;
  }
  throw amct::ValueError("granularity must be 'per_tensor', 'per_channel' or 'per_head', not '" +
                         name + "'");
}

/// Settings of a configuration file, of those that are given.
std::vector<std::pair<std::string, amct::OptionValue>> settings_of(const char* algorithm,
                                                                   const char* granularity,
                                                                   const char* dst_type) {
  std::vector<std::pair<std::string, amct::OptionValue>> settings;
  if (algorithm != nullptr) settings.emplace_back("act_algo", std::string(algorithm));
  if (dst_type != nullptr) settings.emplace_back("dst_type", std::string(dst_type));
  if (granularity != nullptr) {
    settings.emplace_back("quant_granularity",
                          static_cast<std::int64_t>(granularity_named(granularity)));
  }
  return settings;
}

void give(const amct_record::Layer& layer, amct_factors* factors) {
  needed(factors, "factors") = {.layer = layer.name.c_str(),
                                .dst_type = layer.dst_type.c_str(),
                                .granularity = layer.granularity.c_str(),
                                .count = layer.scales.size(),
                                .scales = layer.scales.data(),
                                .offsets = layer.offsets.data(),
                                .sink_tokens = layer.sink_tokens};
}

/// Rows of `channels`, one after the other.
template <typename Byte>
amct::BasicCodesView<Byte> codes_of(const amct::Codec& codec, const amct::TensorView& x,
                                    Byte* codes, std::size_t size) {
  std::vector<std::int64_t> shape = x.shape.empty() ? std::vector<std::int64_t>{1} : x.shape;
  shape.back() = codec.row_bytes(x.channels());
  const std::int64_t bytes = x.size() == 0 ? 0 : x.rows() * shape.back();
  if (std::cmp_less(size, bytes)) {
    throw amct::ValueError("codes take " + std::to_string(bytes) + " bytes, and there are " +
                           std::to_string(size));
  }
  std::vector<std::int64_t> strides(shape.size(), 1);
  // Without an element, the other sizes may multiply beyond 63 bits.
  for (std::size_t i = bytes == 0 ? 0 : shape.size() - 1; i > 0; --i)
    strides[i - 1] = strides[i] * shape[i];
  return {codes, std::move(shape), std::move(strides)};
}

}  // namespace

const char* amct_version(void) { return AMCT_VERSION; }
const char* amct_last_error(void) { return last_error().c_str(); }

amct_status amct_write_config(const char* config_file, const char* const* layers,
                              size_t layer_count, int64_t batch_num, const char* algorithm,
                              const char* granularity, int64_t heads, const char* dst_type) {
  return guarded([&] {
    const std::string path = text(config_file, "config_file");
    if (layer_count > 0) needed(layers, "layers");
    std::vector<std::string> names;
    for (std::size_t i = 0; i < layer_count; ++i) names.push_back(text(layers[i], "a layer"));
    auto settings = settings_of(algorithm, granularity, dst_type);
    if (heads != 0) settings.emplace_back("head_num", heads);
    amct::CalibrationConfig config = amct::default_config(names, amct::algorithm_catalog());
    config.batch_num = batch_num;
    for (amct::LayerConfig& layer : config.layers)
      layer = with_settings(layer, settings, amct::algorithm_catalog());
    const std::string json = to_json(config, amct::algorithm_catalog());
    amct::parse_config(json, path, amct::algorithm_catalog());  // what could not be read again
    amct::write_file_atomically(path, json);
  });
}

amct_status amct_session_open(const char* config_file, const char* record_file,
                              const char* counts_file, amct_session** session) {
  return guarded([&] {
    needed(session, "session") = nullptr;
    std::vector<std::string> files{text(config_file, "config_file"),
                                   text(record_file, "record_file")};
    amct::SessionOptions options;
    if (counts_file != nullptr) {
      options.counts_file = counts_file;
      amct::check_output_path(options.counts_file);  // an empty one would stand for none
      files.push_back(options.counts_file);
    }
    amct::check_different_files(files);
    *session = new amct_session{
        amct::Session(amct::read_config(files[0], amct::algorithm_catalog()), files[1], options)};
  });
}

void amct_session_close(amct_session* session) { delete session; }

amct_status amct_session_observe(amct_session* session, const char* layer, const amct_tensor* batch,
                                 int* finished) {
  return guarded([&] {
    const amct::Observation seen =
        needed(session, "session")
            .session.observe(text(layer, "layer"), view_of(needed(batch, "batch")));
    if (finished != nullptr) *finished = seen.kind == amct::Observation::Kind::kAdded ? 0 : 1;
  });
}

amct_status amct_session_finish(amct_session* session) {
  return guarded([&] { needed(session, "session").session.finish(); });
}

amct_status amct_session_unfinished(const amct_session* session, size_t* layers) {
  return guarded(
      [&] { needed(layers, "layers") = needed(session, "session").session.unfinished().size(); });
}

amct_status amct_session_save(amct_session* session, const char* snapshot, int64_t batches_done) {
  return guarded(
      [&] { needed(session, "session").session.save(text(snapshot, "snapshot"), batches_done); });
}

amct_status amct_session_restore(amct_session* session, const char* snapshot,
                                 int64_t* batches_done) {
  return guarded([&] {
    const std::int64_t done =
        needed(session, "session").session.restore(text(snapshot, "snapshot"));
    if (batches_done != nullptr) *batches_done = done;
  });
}

amct_status amct_record_open(const char* record_file, amct_record** record) {
  return guarded([&] {
    needed(record, "record") = nullptr;
    auto opened = std::make_unique<amct_record>();
    for (const amct::LayerRecord& layer : amct::read_record(text(record_file, "record_file"))) {
      amct_record::Layer& held = opened->layers.emplace_back();
      if (layer.name.find('\0') != std::string::npos) {
        throw amct::ValueError(std::string(record_file) + ": the name of layer '" + layer.name +
                               "' holds a NUL, where strings of C end");
      }
      held.name = layer.name;
      held.dst_type = layer.grid.name;
      held.granularity = name_of(granularity_of(layer));
      held.sink_tokens = layer.sink_tokens;
      for (const amct::QuantParams& params : layer.params) {
        held.scales.push_back(params.scale);
        held.offsets.push_back(params.offset);
      }
    }
    *record = opened.release();
  });
}

void amct_record_close(amct_record* record) { delete record; }

size_t amct_record_layers(const amct_record* record) {
  return record == nullptr ? 0 : record->layers.size();
}

amct_status amct_record_layer(const amct_record* record, size_t index, amct_factors* factors) {
  return guarded([&] {
    const auto& layers = needed(record, "record").layers;
    if (index >= layers.size()) {
      throw amct::ValueError("the record has " + std::to_string(layers.size()) +
                             " layers, and none with the index " + std::to_string(index));
    }
    give(layers[index], factors);
  });
}

amct_status amct_record_find(const amct_record* record, const char* layer, amct_factors* factors) {
  return guarded([&] {
    const std::string name = text(layer, "layer");
    const auto& layers = needed(record, "record").layers;
    const auto found = std::ranges::find(layers, name, &amct_record::Layer::name);
    if (found == layers.end()) throw amct::ValueError("the record has no layer '" + name + "'");
    give(*found, factors);
  });
}

amct_status amct_solve(const char* counts_file, const char* record_file, const char* algorithm,
                       const char* granularity, const char* dst_type) {
  return guarded([&] {
    const std::string counts = text(counts_file, "counts_file");
    const std::string record = text(record_file, "record_file");
    amct::check_output_path(record);
    amct::check_different_files(std::array{counts, record});
    std::vector<amct::LayerRecord> layers;
    for (const amct::LayerResult& result :
         amct::solve_counts(counts, settings_of(algorithm, granularity, dst_type)))
      layers.push_back(record_of(result));
    amct::write_record(record, layers);
  });
}

amct_status amct_codec_create(const amct_factors* factors, int heads_apart, amct_codec** codec) {
  return guarded([&] {
    needed(codec, "codec") = nullptr;
    const amct_factors& given = needed(factors, "factors");
    if (given.count > 0) {
      needed(given.scales, "scales");
      needed(given.offsets, "offsets");
    }
    std::vector<amct::QuantParams> params;
    for (std::size_t i = 0; i < given.count; ++i)
      params.push_back({given.scales[i], given.offsets[i]});
    *codec = new amct_codec{amct::Codec(
        amct::grid_named(text(given.dst_type, "dst_type"), "dst_type"), params,
        granularity_named(text(given.granularity, "granularity")),
        heads_apart != 0 ? amct::HeadLayout::kOwnDimension : amct::HeadLayout::kInChannels)};
  });
}

void amct_codec_close(amct_codec* codec) { delete codec; }

int64_t amct_codec_row_bytes(const amct_codec* codec, int64_t channels) {
  return codec == nullptr ? 0 : codec->codec.row_bytes(channels);
}

amct_status amct_codec_quantize(const amct_codec* codec, const amct_tensor* x, uint8_t* codes,
                                size_t size) {
  return guarded([&] {
    const amct::Codec& made = needed(codec, "codec").codec;
    const amct::TensorView view = view_of(needed(x, "x"));
    made.quantize(view, codes_of(made, view, &needed(codes, "codes"), size));
  });
}

amct_status amct_codec_dequantize(const amct_codec* codec, const uint8_t* codes, size_t size,
                                  const amct_tensor* like, void* values) {
  return guarded([&] {
    const amct::Codec& made = needed(codec, "codec").codec;
    amct_tensor tensor = needed(like, "like");
    if (values == nullptr) throw amct::ValueError("values must not be NULL");
    tensor.data = values;
    tensor.strides = nullptr;
    const amct::TensorView view = view_of(tensor);
    made.dequantize(codes_of(made, view, &needed(codes, "codes"), size),
                    {values, view.dtype, view.shape, view.strides});
  });
}
