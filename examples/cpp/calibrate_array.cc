// Calibrates an array of your own, without Python: two layers, three batches, a record file.
//
//   calibrate_array record.txt
//
// Build against an installed library with find_package(amct) and amct::amct.
#include "amct/config/calibration_config.h"
#include "amct/core/tensor_view.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <random>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: " << argv[0] << " RECORD_FILE\n";
    return 2;
  }
  try {
    // What create_quant_cali_config would write: default settings for two layers.
    const std::vector<std::string> names{"layers.0.k_proj", "layers.0.v_proj"};
    amct::CalibrationConfig config = amct::default_config(names, amct::algorithm_catalog());
    config.batch_num = 3;
    config.layers[1].granularity = amct::Granularity::kPerChannel;
    amct::Session session(config, argv[1]);

    // In a runtime, this is where the projections' outputs pass by.
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    const std::vector<std::int64_t> shape{2, 64, 16};  // batch, tokens, channels
    std::vector<float> batch(std::size_t{2} * 64 * 16);
    for (int i = 0; i < config.batch_num; ++i) {
      for (const std::string& name : names) {
        for (float& value : batch) value = normal(generator);
        session.observe(name,
                        amct::TensorView::contiguous(batch.data(), amct::DType::kFloat32, shape));
      }
    }

    for (const amct::LayerResult& layer : session.results()) {
      std::printf("%s: %zu scale(s), first %g with offset %d, SQNR %.1f dB\n", layer.name.c_str(),
                  layer.params.size(), static_cast<double>(layer.params[0].scale),
                  layer.params[0].offset, layer.sqnr_db.value_or(0));
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
