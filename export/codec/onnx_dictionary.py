"""Bytes typical of exported graphs, known to coder and decoder, so that a small graph need not spell them.

Part of format version 1: changing a byte needs a new version. The most common strings come last, where
deflate's references to them are shortest. The pieces are protobuf fields as they stand in an ONNX file.
"""

DICTIONARY = (
    b"pkg.torch.export.ExportedProgram.graph_signature pkg.torch.onnx.original_node_name"
    b"USER_INPUT USER_OUTPUT PARAMETER BUFFER persistent target= range_constraints\x12\x07pytorch\x1a"
    b"main_graph ai.onnx.ml com.microsoft QuantizeLinear DequantizeLinear _scale _zero_point _quantized"
    b"storage_order ceil_mode count_include_pad auto_pad NOTSET allowzero noop_with_empty_axes keepdims"
    b"Constant*value Unsqueeze Squeeze Slice Split Sigmoid Softmax HardSwish LeakyRelu Clip Mul Sub Div"
    b"MatMul Transpose Gather Cast BitShift\x12direction LEFT RIGHT BitwiseAnd uint8 uint64"
    b'"\x06Concat*\x0b\n\x04axis\x18\x01\xa0\x01\x02"\x07Flatten"\x0bAveragePool"\x11GlobalAveragePool'
    b'"\nReduceMean*\x0f\n\x08keepdims\x18\x00\xa0\x01\x02group dilations epsilon momentum alpha beta'
    b"\n\x19layer1.0.downsample.0.weight\n\x14classifier.0.weight\n\x11features.0.weight\n\x0ffeatures.0.bias"
    b"\n\x17features.1.running_mean\n\x16features.1.running_var\n\x15layer1.0.conv1.weight"
    b'\n\x13layer1.0.bn1.weight\n\x11layer1.0.bn1.bias\n\x19layer1.0.bn1.running_mean"\x03Add'
    b"\n\x18layer1.0.bn1.running_var\n\nbn1.weight\n\x08bn1.bias\n\x10bn1.running_mean\n\x0fbn1.running_var"
    b"*\x11\n\x04pads@\x01@\x01@\x01@\x01\xa0\x01\x07*\x10\n\x07strides@\x02@\x02\xa0\x01\x07"
    b'\x08\n\x12\x06tersor:\n<\n\x05input\n\x0econv1.0.weight\x12\x02v0\x1a\x02n0"\x04Conv'
    b"*\x15\n\x0ckernel_shape@\x03@\x03\xa0\x01\x07\ni\n\x02v0\n\x0econv1.1.weight\n\x0cconv1.1.bias"
    b'\n\x14conv1.1.running_mean\n\x13conv1.1.running_var\x12\x02v1\x1a\x02n1"\x12BatchNormalization'
    b'\n\x12\n\x02v1\x12\x02v2\x1a\x02n2"\x04Relu\n9\n\x02v2\n\x0econv2.0.weight\x12\x02v3\x1a\x02n3"\x04Conv'
    b'*\x15\n\x0ckernel_shape@\x03@\x03\xa0\x01\x07\n\x12\n\x02v4\x12\x02v5\x1a\x02n5"\x04Relu'
    b'\n>\n\x02v5\x12\x02v6\x1a\x02n6"\x07MaxPool*\x10\n\x07strides@\x02@\x02\xa0\x01\x07'
    b'*\x15\n\x0ckernel_shape@\x02@\x02\xa0\x01\x07\n\x19\n\x02v6\n\x02c0\x12\x02v7\x1a\x02n7"\x07Reshape'
    b'\n7\n\x02v7\n\nfc1.weight\n\x08fc1.bias\x12\x02v8\x1a\x02n8"\x04Gemm*\r\n\x06transB\x18\x01\xa0\x01\x02'
    b'\n\x12\n\x02v8\x12\x02v9\x1a\x02n9"\x04Relu\n<\n\x02v9\n\nfc2.weight\n\x08fc2.bias\x12\x06logits'
    b'\x1a\x03n10"\x04Gemm*\r\n\x06transB\x18\x01\xa0\x01\x02\x12\x06tersor*\x1a\x08\x02\x10\x07B\x02c0J\x10'
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x00\x01\x00\x00\x00\x00\x00\x00*\x9d\t\x08 \x08\x01\x08\x03\x08\x03"
    b"\x10\x01B\x0econv1.0.weightJ\x80\t*\x97\x01\x08 \x10\x01B\x0econv1.1.weightJ\x80\x01"
    b"*\x95\x01\x08 \x10\x01B\x0cconv1.1.biasJ\x80\x01*\x97\x02\x08@\x10\x01B\x0econv2.1.weightJ\x80\x02"
    b"*\x98\x08\x08\x80\x01\x10\x01B\nfc1.weightJ*\x9d\x01\x08 \x10\x01B\x14conv1.1.running_meanJ\x80\x01"
    b"*\x9c\x01\x08 \x10\x01B\x13conv1.1.running_varJ\x80\x01*\x9d\x02\x08@\x10\x01B\x14conv2.1.running_mean"
    b"J\x80\x02*\x9c\x02\x08@\x10\x01B\x13conv2.1.running_varJ\x80\x02"
    b"Z$\n\x05input\x12\x1b\n\x19\x08\x01\x12\x15\n\x07\x12\x05batch\n\x02\x08\x03\n\x02\x08 \n\x02\x08 "
    b"b\x1d\n\x06logits\x12\x13\n\x11\x08\x01\x12\r\n\x07\x12\x05batch\n\x02\x08\nB\x04\n\x00\x10\x14r4\n"
    b'\x07classes\x12)["0","1","2","3","4","5","6","7","8","9"]r8\n\ndefinition\x12*mnist'
    b"(batch_norm=True, dropout=[0.1, 0.3])r\x15\n\x07licence\x12\nnot statedr\x18"
    b'CC0-1.0 MIT BSD-3-Clause Apache-2.0rR\n\x0enetwork_sha256\x12@r;\n\rpreprocessing\x12*{"divisor":255.0,'
    b'"mean":[0.5],"std":[0.5]}r\x17\n\x0etersor_version\x12\x050.1.0'
)
