import pytest
import torch
from torch import nn
from torch.nn import functional

from vidflow.models.tasks.readouts import AttentionReadout, QueryDecoder, build_projection


@torch.no_grad()
def test_the_attention_readout_follows_the_equations():
    torch.manual_seed(0)
    readout = AttentionReadout(12, 5, width=8, num_heads=2, num_queries=3, num_frames=2)
    for parameter in readout.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.randn(2, 2, 4, 12)
    for row in range(2):
        features = (readout.input_norm(tokens[row]) + readout.temporal_posenc[0]).reshape(8, 12)
        keys, values = readout.key_proj(features), readout.value_proj(features)
        for query in range(3):
            heads = []
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                weights = (keys[:, part] @ readout.query[query, head] / 4**0.5).softmax(0)
                heads.append(weights @ values[:, part])
            z = readout.query[query].flatten() + readout.out_proj(torch.cat(heads))
            z = z + readout.mlp_fc2(functional.gelu(readout.mlp_fc1(readout.mlp_norm(z))))
            torch.testing.assert_close(readout(tokens)[row, query], readout.classifier(z), rtol=1e-4, atol=1e-5)


def test_the_published_readout_has_about_seven_million_parameters():
    with torch.device("meta"):
        readout = AttentionReadout(1024, 174, width=768, num_heads=12)
    # Source: reference numbers of the SSv2 readout at width 1024: 7.0 million.
    assert round(sum(value.numel() for value in readout.parameters()) / 1e6, 1) == 7.0


@torch.no_grad()
def test_many_queries_at_once_equal_torch_decoding_each_alone():
    torch.manual_seed(0)
    decoder = QueryDecoder(16, 4).eval()
    torch_layer = nn.TransformerDecoderLayer(16, 4, 64, dropout=0.0, batch_first=True, norm_first=True).eval()
    torch_layer.load_state_dict(decoder.layers[0].state_dict())
    query, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    alone = torch.cat([torch_layer(query[:, i : i + 1], memory) for i in range(5)], 1)
    torch.testing.assert_close(decoder(query, memory), decoder.output_norm(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_queries_give_no_answers():
    assert QueryDecoder(16, 4)(torch.zeros(2, 0, 16), torch.zeros(2, 7, 16)).shape == (2, 0, 16)


def test_there_is_a_projection_only_between_different_widths():
    assert list(build_projection(16, 16).parameters()) == []
    assert build_projection(16, 8)(torch.zeros(3, 16)).shape == (3, 8)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_folding_the_projections_changes_neither_the_answer_nor_a_gradient(num_queries):
    readout = AttentionReadout(24, 5, width=32, num_heads=4, num_queries=num_queries).double()
    features = torch.randn(3, 20, 24, dtype=torch.float64)
    results = []
    for attend in (readout._attend, readout._attend_folded):
        readout.zero_grad()
        output = attend(features)
        output.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in readout.named_parameters() if p.grad is not None}
        results.append({"output": output, **gradients})
    plain, folded = results
    # Softmax does not see a shift of all scores, so the keys' bias has no effect, and folded it is left out.
    torch.testing.assert_close(plain["key_proj.bias"], torch.zeros(32).double(), rtol=0, atol=1e-12)
    assert set(folded) == set(plain) - {"key_proj.bias"}
    assert len(folded) == 5
    for name, value in folded.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-10, atol=1e-12)
