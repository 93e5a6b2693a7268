// A project that uses the installed library: calibrates values from 0 to 255 by min-max, whose
// factors are known, and catches an error of the library by its type.
#include "amct/config/operator_params.h"
#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <cstdio>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const amct::OperatorParams params = amct::parse_operator_params(
        {{"act_algo", std::string("minmax")}}, amct::algorithm_catalog());
    amct::Session session(params, argv[1]);
    std::vector<float> values(256);
    std::iota(values.begin(), values.end(), 0.0F);
    session.observe("layer",
                    amct::TensorView::contiguous(values.data(), amct::DType::kFloat32, {16, 16}));
    const amct::QuantParams found = amct::read_record(argv[1]).at(0).params.at(0);
    try {
      session.observe("empty",
                      amct::TensorView::contiguous(values.data(), amct::DType::kFloat32, {0}));
      return 1;
    } catch (const amct::StateError&) {  // as it was thrown, from the shared library as well
    }
    std::printf("scale %g offset %d\n", static_cast<double>(found.scale), found.offset);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
