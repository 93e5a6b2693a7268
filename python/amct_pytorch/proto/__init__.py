"""The protobuf schemas of the definition and the record file.

Compile them with this folder on the import path::

    protoc -I $(python -c "import amct_pytorch.proto as p; print(p.__path__[0])") \
        --python_out=. scale_offset_record_pytorch.proto basic_info.proto
"""
