import torch

from vidflow.models.cores.gated_transformer import GatedTransformerCore


@torch.no_grad()
def test_the_memory_follows_the_equations():
    torch.manual_seed(0)
    core, clip = GatedTransformerCore(16, 2, 4).eval(), torch.randn(2, 3, 5, 16)
    memory, expected = torch.zeros(2, 5, 16), []
    for frame in clip.unbind(1):
        update = torch.sigmoid(frame @ core.input_update.weight.T + memory @ core.state_update.weight.T)
        reset = torch.sigmoid(frame @ core.input_reset.weight.T + memory @ core.state_reset.weight.T)
        known = reset * core.state_layer_norm(memory)
        z = frame
        for layer in core.transformer.layers:
            z = z + layer.ca_attn(layer.ca_norm(z), known, known)[0]
            z = z + layer.mlp.fc2(torch.nn.functional.gelu(layer.mlp.fc1(layer.mlp_norm(z))))
            normed = layer.sa_norm(z)
            z = z + layer.sa_attn(normed, normed, normed)[0]
        memory = (1 - update) * memory + update * core.transformer.output_norm(z)
        expected.append(core.output_norm(memory))
    output, (last,) = core(clip)
    torch.testing.assert_close(output, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, memory, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_at_the_first_frame_the_memory_adds_the_same_to_every_token():
    torch.manual_seed(0)
    core, frame = GatedTransformerCore(16, 1, 4).eval(), torch.randn(1, 5, 16)
    layer, zero = core.transformer.layers[0], torch.zeros(1, 5, 16)
    known = core.state_layer_norm(zero)
    added = layer.ca_attn(layer.ca_norm(frame), known, known)[0]
    torch.testing.assert_close(added, added[:, :1].expand_as(added), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_variants_differ_most_while_the_memory_is_small():
    torch.manual_seed(0)
    released, rvm = GatedTransformerCore(16, 1, 4), GatedTransformerCore(16, 1, 4, variant="rvm")
    rvm.load_state_dict({key: value for key, value in released.state_dict().items() if key in rvm.state_dict()})
    assert rvm.state_layer_norm.bias is None
    small, large = 1e-3 * torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    gaps = [(released.state_layer_norm(part) - rvm.state_layer_norm(part)).abs().max() for part in (small, large)]
    assert gaps[0] > 0.5
    assert gaps[1] < 1e-3
    assert not torch.equal(released(large[:, None])[1][0], rvm(large[:, None])[1][0])
