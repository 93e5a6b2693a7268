// The names of scales, by the tables of several versions.
#include "export/scale_tensors.h"

#include <string>

#include <gtest/gtest.h>

namespace amct {
namespace {

TEST(ScaleTensorsTest, NamesBecomeTheParametersOfEachRuntime) {
  struct Case {
    const char* name;
    const char* vllm;
    const char* old_vllm;
    const char* sglang;
  };
  const std::string a = "model.layers.0.";
  for (const Case& c : {
           Case{"self_attn.k_scale", "self_attn.attn.k_scale", "self_attn.attn.k_scale",
                "self_attn.attn.k_scale"},
           Case{"self_attn.k_proj.k_scale", "self_attn.attn.k_scale", "self_attn.attn.k_scale",
                "self_attn.attn.k_scale"},
           Case{"self_attn.v_proj.v_scale", "self_attn.attn.v_scale", "self_attn.attn.v_scale",
                "self_attn.attn.v_scale"},
           Case{"self_attn.v_proj.k_scale", "self_attn.attn.k_scale", "self_attn.attn.k_scale",
                "self_attn.v_proj.attn.k_scale"},
           Case{"self_attn.qkv_proj.k_scale", "self_attn.attn.k_scale", "self_attn.attn.k_scale",
                "self_attn.qkv_proj.attn.k_scale"},
           Case{"self_attn.qkqkv_proj.v_scale", "self_attn.attn.v_scale", "self_attn.attn.v_scale",
                "self_attn.qkqkv_proj.attn.v_scale"},
           Case{"mixer.k_proj.k_scale", "mixer.attn.k_scale", "mixer.attn.k_scale",
                "mixer.attn.k_scale"},
           Case{"self_attn.attn.k_scale", "self_attn.attn.k_scale", "self_attn.attn.attn.k_scale",
                "self_attn.attn.attn.k_scale"},
           Case{"self_attn.kv_scale", "self_attn.attn.k_scale", "self_attn.attn.k_scale",
                "self_attn.attn.k_scale"},
           Case{"self_attn.k_cache.scale", "self_attn.attn.k_scale", "self_attn.k_cache.scale",
                "self_attn.k_cache.scale"},
           Case{"self_attn.q.scale", "self_attn.attn.q_scale", "self_attn.q.scale",
                "self_attn.q.scale"},
           Case{"self_attn.v_zero_point", "self_attn.attn.v_zero_point",
                "self_attn.attn.v_zero_point", "self_attn.v_zero_point"},
           Case{"self_attn.v_proj.output_scale", "self_attn.v_proj.output_scale",
                "self_attn.v_proj.output_scale", "self_attn.attn.v_scale"},
           Case{"self_attn.k_proj.weight_scale", "self_attn.k_proj.weight_scale",
                "self_attn.k_proj.weight_scale", "self_attn.k_proj.weight_scale"},
       }) {
    EXPECT_EQ(vllm_parameter(a + c.name), a + c.vllm);
    EXPECT_EQ(old_vllm_parameter(a + c.name), a + c.old_vllm);
    EXPECT_EQ(sglang_parameter(a + c.name), a + c.sglang);
  }
  for (const char* odd : {"", ".", "k_scale", ".k_scale", "k_proj.k_scale", "..."}) {
    vllm_parameter(odd);
    old_vllm_parameter(odd);
    sglang_parameter(odd);
  }
}

}  // namespace
}  // namespace amct
