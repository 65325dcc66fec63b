"""What models of a kind have in common, under the names of the host's constructors. Sizes, and what differs, is added where they are made."""

FLUX1 = dict(
    in_channels=16,
    out_channels=16,
    mlp_ratio=4.0,
    axes_dim=[16, 56, 56],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=False,
    txt_ids_dims=[],
)
HUNYUAN_VIDEO = dict(
    patch_size=[1, 2, 2],
    theta=256,
    qkv_bias=True,
    byt5=False,
    meanflow=False,
    use_cond_type_embedding=False,
    vision_in_dim=None,
    meanflow_sum=False,
)
COSMOS = dict(  # both generations, and Anima
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    concat_padding_mask=True,
    pos_emb_cls="rope3d",
    use_adaln_lora=True,
)
